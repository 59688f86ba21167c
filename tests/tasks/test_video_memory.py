"""The model of memory against measured peaks, and the plans that it makes."""

import gc
import re
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model
from natten_zoo.models import LTXDecoder, LTXDecoderConfig
from natten_zoo.models.clip import Cut
from natten_zoo.tasks import Tiling, decode_video, plan_decoding
from natten_zoo.tasks.video_memory import CHUNKS, parse_bytes, usable_memory
from natten_zoo.tasks.video_stage import Stage

SIZE = (8, 8, 8)


@pytest.fixture(scope="module")
def decoder():
    """Of few channels, so that a clip of many tokens is soon decoded."""
    mx.random.seed(0)
    kernels = ((3, 3, 3),) * 4 + ((5, 3, 3),)
    config = LTXDecoderConfig(
        in_chans=8, head_dim=16, widths=(128, 128, 64, 64, 64), depths=(1, 1, 1, 1, 1),
        kernel_sizes=kernels, reductions=(1, 2, 1, 1), time_dim=24,
        strides=((1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
    )  # fmt: skip
    model = LTXDecoder(config).eval()
    mx.eval(model.parameters())
    return model


TILES = Tiling((48, 96, 128), (40, 64, 128))
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("tiling", "share", "tier", "dtype"),
    [
        (None, 0.7, "auto", mx.float32),
        (None, 1.0, "auto", mx.bfloat16),
        *(
            pytest.param(None, share, tier, dtype, marks=SLOW)
            for share in (1.0, 0.82, 0.65)
            for tier in ("auto", "pure")
            for dtype in (mx.float32, mx.bfloat16)
        ),
        pytest.param(TILES, 1.0, "auto", mx.float32, marks=SLOW),
        (TILES, 0.75, "auto", mx.float32),
    ],
)
def test_measured_peaks(decoder, monkeypatch, tiling, share, tier, dtype):
    """Within the budget always; of tiles the model only says what the largest may take."""
    monkeypatch.setattr("natten_zoo.tasks.video_memory.CHUNKS", (1024,))
    monkeypatch.setattr("natten_zoo.ops.backend._set", tier)
    decoder.set_dtype(dtype)
    mx.eval(decoder.parameters())
    latents = mx.random.normal((1, *SIZE, 8))
    mx.eval(latents)
    budget = int(plan_decoding(decoder, SIZE, None, tiling).peak * share)
    plan = plan_decoding(decoder, SIZE, budget, tiling)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    ours = [latents, *(x for _, x in tree_flatten(decoder.parameters()))]
    others = mx.get_active_memory() - sum(x.nbytes for x in ours)  # of tests that came before
    decode_video(decoder, latents, memory=budget, tiling=tiling)
    peak = mx.get_peak_memory() - others
    least = 0.8 if tiling is None else 0.5
    assert least * plan.peak < peak < 1.02 * plan.peak <= 1.02 * budget


def test_the_published_size_in_12_and_8_gigabytes():
    """121 frames of 768 x 512 pixels, none of them at the price of tiles."""
    model, size = create_model("ltx_2_5_decoder"), (16, 16, 24)
    for dtype, memory in ((mx.float32, 12), (mx.bfloat16, 12), (mx.bfloat16, 8)):
        model.set_dtype(dtype)
        plan = plan_decoding(model, size, memory * 10**9)
        assert plan.peak <= memory * 10**9 and plan.tiling is None
    assert plan_decoding(model, size, 6 * 10**9, True).tiling is not None
    assert plan_decoding(model, size, 10**12, True).tiling == Tiling()
    with pytest.raises(ValueError, match=r"even in tiles, but got 1\.00 GB"):
        plan_decoding(model, size, 10**9, True)


def test_the_table_in_the_docs():
    """What fits into which memory, by columns: frames and pixels of a video."""
    page = (Path(__file__).parents[2] / "docs/tasks/decode.md").read_text()
    head, _, *rows = re.search(r"(\| bfloat16, `--memory`.*?\n)\n", page, re.S)[1].splitlines()
    sizes = [tuple(map(int, found)) for found in re.findall(r"(\d+) frames of (\d+) x (\d+)", head)]
    model = create_model("ltx_2_5_decoder")
    model.set_dtype(mx.bfloat16)
    assert len(sizes) == 4 and len(rows) == 6
    for row in rows:
        memory, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for (frames, width, height), cell in zip(sizes, cells, strict=True):
            arguments = model, (frames // 8 + 1, height // 32, width // 32), parse_bytes(memory)
            if cell in ("", "--tiles", "`--tiles`"):
                with pytest.raises(ValueError, match="'memory' must be at least"):
                    plan_decoding(*arguments, tiling=not cell)
                continue
            plan = plan_decoding(*arguments)
            said = re.match(r"all at once|slabs of (\d+)(?:, (?:attention )?([\d.]+) times)?", cell)
            times = said[2] or "1.0"
            assert plan.cuts[-1].frames == int(said[1] or frames), (memory, frames, cell)
            assert f"{plan.redundancy:.1f}" == times, (memory, frames, cell)


def test_a_plan_says_what_it_does():
    model = create_model("ltx_2_5_decoder")
    model.set_dtype(mx.bfloat16)
    text = str(plan_decoding(model, (16, 16, 24), 8 * 10**9))
    assert (
        text.startswith("whole, in slabs of ") and " with 4 groups of heads, attention 1." in text
    )
    plan = plan_decoding(model, (16, 16, 24), 6 * 10**9, True)
    assert str(plan).startswith("in tiles of ") and plan.redundancy < 4


def test_all_is_computed_once_where_memory_is_plenty():
    model = create_model("ltx_2_5_decoder")
    assert plan_decoding(model, (16, 16, 24)).redundancy == 1
    # Cells of the grid: frames 0-40 and 28-61 of 61, rows in one tile, columns in one.
    assert plan_decoding(model, (16, 16, 24), None, Tiling()).redundancy == (40 + 33) / 61


def test_more_memory_is_never_more_work():
    stage = Stage((121, 128, 192), 256, 4, 11, 1, 4, 10**9, 0, (7, 0))
    cuts = [stage.cut(gigabytes * 1e9, CHUNKS[0]) for gigabytes in range(4, 80, 2)]
    found = [cut for cut in cuts if cut is not None]
    assert cuts[0] is None and found[-1] == Cut(121, 1)
    slabs = [-(-121 // cut.frames) for cut in found]
    assert slabs == sorted(slabs, reverse=True) and slabs[0] > 1
    for cut, gigabytes in zip(cuts, range(4, 80, 2), strict=True):
        assert cut is None or stage.peak(cut) <= gigabytes * 1e9


@pytest.mark.parametrize("text", ["", "8", "GB", "8TB", "-1GB", "0GB", "8 G B", "1e9"])
def test_sizes_of_memory(text):
    if text == "8":
        assert parse_bytes(text) == 8
        return
    with pytest.raises(ValueError, match="'text' must be like 8GB or 500MB but got"):
        parse_bytes(text)


def test_usable_memory_is_some():
    assert 10**8 < usable_memory() < 10**14

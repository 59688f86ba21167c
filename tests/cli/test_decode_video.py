"""`natten-zoo decode-video`: latents to a file, and what it says when it can't."""

import re

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo import cli
from natten_zoo.cli._diagnosis import on_cpu
from natten_zoo.tasks import decode_video
from tests.models import ltx


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    ltx.small().save_pretrained(folder / "decoder")
    channels_first = mx.moveaxis(ltx.latent(), -1, 1)
    mx.save_safetensors(str(folder / "latents.safetensors"), {"latents": channels_first})
    return folder


@pytest.fixture
def here(desk, monkeypatch):
    monkeypatch.chdir(desk)
    return desk


def test_a_video_of_the_published_file(here, capsys):
    """The size of which is none of the known models', so the folder says what it is."""
    arguments = ["latents.safetensors", "--model", "decoder", "-o", "out.png", "--fps", "10"]
    assert cli.main(["decode-video", *arguments, "--memory", "1GB"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"written: out.png, decoded in \d+ s and 0\.0[1-9] GB", out)
    assert "17 frames of 80 x 64 pixels, whole, in slabs of 17 frames with all heads" in err
    expected = decode_video(ltx.small(), ltx.latent())[0]
    with Image.open("out.png") as picture:
        assert picture.n_frames == 17
        for index in range(17):
            picture.seek(index)
            assert np.abs(np.array(picture.convert("RGB")).astype(int) - expected[index]).max() <= 1


def test_what_is_slow_on_a_cpu_is_said(here, capsys):
    given = ["decode-video", "latents.safetensors", "-m", "half", "-o", "half.png"]
    model = ltx.small()
    model.set_dtype(mx.bfloat16)
    model.save_pretrained("half")
    with on_cpu():
        for more, said in ([], True), (["--dtype", "float32"], False):
            assert cli.main([*given, *more]) == 0
            assert ("may be faster than bfloat16 on a CPU" in capsys.readouterr().err) == said


def test_mp4(here):
    av = pytest.importorskip("av")
    assert (
        cli.main(["decode-video", "latents.safetensors", "--model", "decoder", "-o", "a.mp4"]) == 0
    )
    with av.open("a.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (80, 64, 24)
        assert sum(1 for _ in container.decode(video=0)) == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.avi"], "must end in one of .mp4, .mov, .m4v, .mkv, .gif, .png, .webp but got"),
        (["--memory", "5MB"], "--memory must be at least 0.01 GB for 17 frames of 80 x 64 pixels"),
        (["--memory", "5MB", "--tiles"], "even in tiles"),
        (["--fps", "0"], "--fps must be a number in 0..1000 but got 0.0"),
        (["-m", "no-such"], "no-such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(here, capsys, arguments, message):
    given = ["decode-video", "latents.safetensors", "-m", "decoder", "-o", "x.png", *arguments]
    assert cli.main(given) == 2
    assert message in capsys.readouterr().err
    assert not list(here.glob("x.*")) and not list(here.glob(".x.*"))


def test_words_that_are_no_memory(here, capsys):
    with pytest.raises(SystemExit):
        cli.main(["decode-video", "latents.safetensors", "-m", "decoder", "--memory", "much"])
    assert "must be like 8GB or 500MB but got much" in capsys.readouterr().err


def test_several_videos_are_refused(here, capsys):
    mx.save_safetensors("two.safetensors", {"x": mx.zeros((2, 3, 4, 5, 8))})
    assert cli.main(["decode-video", "two.safetensors", "-m", "decoder", "-o", "x.png"]) == 2
    assert "must be of one video but two.safetensors has 2" in capsys.readouterr().err

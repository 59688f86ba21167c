"""Launches that are cut up: the same bits as in one, on a device that ends what takes long."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.metal import MATRIX, SCALAR_4, SCALAR_8
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu.cuts import MOST_THREADS, cut_up
from natten_zoo.ops.gpu.device import BESIDE_KEYS, SHARE, current, machine, use_device
from natten_zoo.ops.gpu.plan import lay_out
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.native import programs
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import install, record
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import case_of


def problem(
    hood: Neighborhood, batch: int, spatial: tuple[int, ...], heads: int = 4, **more
) -> Problem:
    return Problem(hood, batch, spatial, heads, 2, 8, 8, 0.3, mx.float32, **more)


PROBLEMS = {
    "samples": problem(Neighborhood.of(1, 5), 5, (40,), has_lengths=True),
    "1-D": problem(Neighborhood.of(1, 5, dilation=3, is_causal=True), 1, (1200,)),
    "2-D": problem(Neighborhood.of(2, (5, 3), dilation=(2, 1)), 2, (61, 23), has_lengths=True),
    "strided": problem(Neighborhood.of(2, 3, stride=(2, 3), dilation=(3, 2)), 1, (70, 50)),
    "biased": problem(Neighborhood.of(2, (3, 5)), 1, (37, 21), has_rpb=True),
    "3-D": problem(Neighborhood.of(3, (3, 2, 3), window_stride=(2, 1, 1)), 1, (9, 11, 10)),
    "finer": problem(Neighborhood.of(2, (3, 5), dilation=(2, 1)), 2, (17, 9), 24, finer=(3, 2)),
}


def results(p: Problem) -> dict[str, mx.array]:
    """Of all six functions, or of the two that have finer queries."""
    case = case_of(p, lengths=mx.array(LENGTHS[p]) if p.has_lengths else None)
    q, k, v, rpb, lengths = case.query, case.key, case.value, case.rpb, case.lengths
    out, lse, stats = gpu.forward(p, q, k, v, rpb, lengths)
    attn = mx.random.normal((*lse.shape, p.neighborhood.volume), key=mx.random.key(1))
    got = {"out": out, "lse": lse, "stats": stats}
    names = ("d_query", "d_key", "d_value", "d_rpb")
    backward = gpu.backward(p, q, k, v, rpb, lengths, out, stats, out, lse)
    got |= dict(zip(names, backward, strict=True))
    if p.finer:  # the separate products have no such queries
        return {name: x for name, x in got.items() if x is not None}
    got["logits"] = gpu.qk(p, q, k, rpb, lengths)
    got |= dict(zip(("q", "k", "r"), gpu.qk_backward(p, q, k, rpb, lengths, attn), strict=True))
    got["av"] = gpu.av(p, attn, v, lengths)
    got |= dict(zip(("a", "v"), gpu.av_backward(p, attn, v, lengths, out), strict=True))
    return {name: x for name, x in got.items() if x is not None}


LENGTHS = {
    PROBLEMS["samples"]: [[40], [7], [1], [33], [40]],
    PROBLEMS["2-D"]: [[61, 23], [17, 9]],
}


QUICK = {("biased", MATRIX), ("finer", MATRIX)}


@pytest.mark.parametrize(
    ("name", "core"),
    [
        pytest.param(
            name,
            core,
            id=f"{name}-{core.name}{core.lanes}",
            marks=[] if (name, core) in QUICK else pytest.mark.slow,
        )
        for name in PROBLEMS
        for core in (MATRIX, SCALAR_4, SCALAR_8)
    ],
)
def test_cut_or_not(metal, name, core):  # noqa: F811
    p = PROBLEMS[name]
    device = replace(current(), core=core, enough_threadgroups=10**9, longest_launch=math.inf)
    with use_device(device), record() as whole:
        wanted = results(p)
    work = 32 * p.neighborhood.volume * p.batch * p.heads * math.prod(p.out)
    with use_device(replace(device, longest_launch=work / 7)), record() as cut:
        got = results(p)
    assert len(cut) > 2 * len(whole)
    for array, x in wanted.items():
        if array in ("d_rpb", "r"):  # its shares are more, and added in another order
            np.testing.assert_allclose(np.array(got[array]), np.array(x), rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(np.array(got[array]), np.array(x), err_msg=array)


def test_a_device_that_ends_what_takes_long(toolchain):  # noqa: F811
    p = PROBLEMS["3-D"]
    q, k, v = (getattr(case_of(p), name) for name in ("query", "key", "value"))
    device = replace(current(), enough_threadgroups=10**9, generation="drawing a screen")
    with use_device(replace(device, longest_launch=math.inf)), install(), record() as launches:
        wanted, *_ = gpu.forward(p, q, k, v, None, None)
    patience = max(x.counts.threadgroup_read_bytes for x in launches) // 2
    with (
        use_device(replace(device, longest_launch=math.inf)),
        install(patience=patience),
        pytest.raises(RuntimeError, match="Impacting Interactivity"),
    ):
        gpu.forward(p, q, k, v, None, None)
    work = 32 * p.neighborhood.volume * p.heads * math.prod(p.out)
    with use_device(replace(device, longest_launch=work / 4)), install(patience=patience):
        got, *_ = gpu.forward(p, q, k, v, None, None)
    assert mx.array_equal(got, wanted)


def test_cuts_have_every_tile_once():
    for batch, pieces in itertools.product((1, 3), (1, 2, 7, 40, 10**6)):
        tiles, span, rows = (3, 4, 2), (2, 8, 16), (5, 30, 20)
        cuts = cut_up(batch, tiles, pieces, span, rows)
        assert min(pieces, batch * 24) <= len(cuts)
        seen = np.zeros((batch, *rows), int)
        for cut in cuts:
            seen[(slice(*cut.samples), *(slice(*at) for at in cut.own))] += 1
        assert (seen == 1).all()
        assert sum((c.samples[1] - c.samples[0]) * math.prod(c.tiles) for c in cuts) == batch * 24


@pytest.mark.parametrize(
    ("hood", "spatial", "heads", "dim", "most"),
    [
        (Neighborhood.of(2, 7), (56, 56), 4, 32, 1),  # as nearly everything: not cut
        (Neighborhood.of(2, 80, window_stride=16), (256, 256), 24, 128, 64),  # FLUX-4K
        (Neighborhood.of(3, (18, 24, 24), window_stride=(16, 8, 8)), (30, 48, 80), 24, 128, 400),
    ],
    ids=["small", "image", "video"],
)
def test_no_launch_takes_long_by_the_model(hood, spatial, heads, dim, most):
    p = Problem(hood, 1, spatial, heads, heads, dim, dim, 0.1, mx.float16)
    device = machine("fast_metal")
    for op in ("forward", "backward"):
        for step in program(op, p, device).steps:
            assert len(step.plan.cuts or "1") <= most
            for cut, plan in step.plan.cuts:
                rows = math.prod(b - a for a, b in cut.own)
                work = 4 * dim * (hood.volume + BESIDE_KEYS) * heads * rows
                assert work <= 1.2 * device.longest_launch
                assert plan.threadgroups * plan.threads <= MOST_THREADS
    assert not program("forward", p, machine("cuda")).steps[0].plan.cuts


def test_no_launch_is_thought_shorter_than_the_model_counts():
    """By the printed table: of backward's cycles the longer of two launches has about 60 %."""
    page = Path(__file__).parents[3] / "docs" / "kernels.md"
    row = r"^\| (\d)-D K(\d+)(?: S16)? D(\d+) \| (\w+) \|(?:[^|]*\|){6} (\d+) \("
    found = re.findall(row, page.read_text("utf-8"), re.M)
    assert len(found) > 30
    for rank, kernel, dim, direction, cycles in found:
        work = 4 * int(dim) * (int(kernel) ** int(rank) + BESIDE_KEYS)
        longest = int(cycles) * (1 if direction == "forward" else 0.6)
        assert longest <= work / (SHARE * 128), (rank, kernel, dim, direction)


def test_more_threads_than_an_int_counts():
    p = Problem(Neighborhood.of(1, 3), 2**11, (2**16,), 8, 8, 8, 8, 1.0, mx.float16)
    plan = lay_out(p, replace(machine("cuda"), core=MATRIX), (8, 8), scale=1.0)
    assert plan.threadgroups * plan.threads > MOST_THREADS
    assert all(part.threadgroups * part.threads <= MOST_THREADS for _, part in plan.cuts)


def test_the_compiled_tier_hands_them_to_python(metal, monkeypatch):  # noqa: F811
    p = PROBLEMS["2-D"]
    case = case_of(p, lengths=mx.array(LENGTHS[p]))
    arrays = [case.query, case.key, case.value]
    with use_device(replace(current(), longest_launch=1.0)) as device:
        compiled = programs.compiled.__wrapped__(None, "forward", p, device)
        got = compiled([*arrays, case.lengths])
        for x, y in zip(got, gpu.forward(p, *arrays, None, case.lengths), strict=True):
            assert mx.array_equal(x, y)

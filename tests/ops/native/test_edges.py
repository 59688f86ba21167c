"""The compiled tier where its vectors, tiles and threads end.

Each test is the only one that sees some fault of those that scripts/mutants.py plants.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.ops import native
from natten_zoo.ops.neighborhood import Neighborhood
from natten_zoo.ops.problem import Problem
from tests.reference import Reference

from .problems import Case, check, exact
from .test_native import compiled

pytestmark = compiled
HALVES = pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)


def products(x: mx.array, y: mx.array) -> mx.array:
    """Of each pair: `qk` of windows of one key and rows of one channel."""
    problem = Problem(Neighborhood.of(1, 1), 1, x.shape, 1, 1, 1, 1, 1.0, x.dtype)
    pair = (a.reshape(1, -1, 1, 1) for a in (x, y))
    return native.qk(problem, *pair, None, None).reshape(-1)


def numbers(dtype: mx.Dtype, start: int = 0) -> mx.array:
    """All 65,536 of them."""
    return mx.array((np.arange(start, start + 2**16) % 2**16).astype(np.uint16)).view(dtype)


@HALVES
def test_every_half_number_is_read_and_written(dtype):
    x = numbers(dtype)
    got, wanted = (np.array(a.astype(mx.float32)) for a in (products(x, mx.ones_like(x)), x))
    assert np.array_equal(got, wanted, equal_nan=True)


@HALVES
@pytest.mark.parametrize("seed", range(3))
def test_results_are_rounded_to_the_nearest_even(dtype, seed):
    """Products of halves are exact in float32, ties are many, and all sizes occur."""
    rng = np.random.default_rng(seed)
    x, y = (mx.array(rng.integers(0, 2**16, 2**16, np.uint16)).view(dtype) for _ in range(2))
    if seed == 0:  # two digits: nearly every product is a tie or close to one
        y = mx.array(rng.choice([0.75, 1.5, 3, 2**-9 * 3, 2.0**-14, 1e4], 2**16)).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.array(x.astype(mx.float32)) * np.array(y.astype(mx.float32))
        if dtype == mx.float16:
            wanted = wide.astype(np.float16).astype(np.float32)
        else:  # by the definition: the upper half, up where the lower one is more than half, or odd
            word = wide.view(np.uint32)
            upper, rest = word >> 16, word & 0xFFFF
            upper = upper + ((rest > 0x8000) | ((rest == 0x8000) & (upper & 1 == 1)))
            wanted = (upper.astype(np.uint32) << 16).view(np.float32)
            wanted = np.where(np.isnan(wide), np.nan, wanted)
    got = np.array(products(x, y).astype(mx.float32))
    assert np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_channels_that_lie_two_apart(dtype):
    """More of them than a vector has."""
    hood = Neighborhood.of(1, 3)
    problem = Problem(hood, 1, (20,), 1, 1, 40, 40, 0.2, dtype)
    c = Case(0, dtype)
    wide = [c.array(1, 20, 1, 80) for _ in range(3)]
    apart, whole = [x[..., ::2] for x in wide], [mx.contiguous(x[..., ::2]) for x in wide]
    for x, y in zip(*(run(problem, *given) for given in (apart, whole)), strict=True):
        assert mx.array_equal(x, y)


def run(problem: Problem, q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
    """The results of both passes."""
    out, lse, stats = native.forward(problem, q, k, v, None, None)
    d_q, d_k, d_v, _ = native.backward(problem, q, k, v, None, None, out, stats, out, lse)
    return [out, lse, d_q, d_k, d_v]


@pytest.mark.parametrize("kernel", [2, 4])
def test_tiles_that_are_alike_but_for_one_lane(kernel):
    """Windows of two: the first tile sees as many rows as the next, but key 1 has one more."""
    hood = Neighborhood.of(1, kernel)
    hold(Problem(hood, 1, (80,), 1, 1, 8, 8, 0.4, mx.float32))


def test_tiles_that_are_alike_but_for_the_first_lane():
    """Of 16 lanes two lie on z: the last tile but one has a first key that more queries see."""
    hood = Neighborhood.of(3, (4, 2, 4))
    hold(Problem(hood, 1, (12, 2, 4), 16, 16, 8, 8, 0.4, mx.float32))


def test_rows_that_are_multiplied_by_two():
    """Of base 2: these rows, too, lie elsewhere than in their array."""
    hold(Problem(Neighborhood.of(1, 3), 1, (40,), 1, 1, 8, 8, 2 * math.log(2), mx.float32))


def hold(problem: Problem) -> None:
    """Against float64."""
    hood = problem.neighborhood
    shape = (1, *problem.spatial, problem.heads, problem.head_dim)
    reference = Reference(
        problem.spatial,
        hood.kernel_size,
        hood.dilation,
        hood.stride,
        hood.window_stride,
        hood.is_causal,
        problem.scale,
        None,
    )
    inputs = [Case(seed, mx.float32).array(*shape) for seed in range(3)]
    out, lse, *grads = run(problem, *inputs)
    check((out, lse), reference.forward(*map(exact, inputs), None), mx.float32, problem)
    wanted = reference.backward(*map(exact, inputs), None, exact(out), exact(lse))
    check(grads, wanted[:3], mx.float32, problem)


COUNT = """
import importlib.util, sys
import mlx.core
spec = importlib.util.spec_from_file_location("natten_zoo.ops.native._ext", sys.argv[1])
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
print(extension.thread_count())
"""


def test_the_number_of_threads():
    """That which is asked for, else one for each processor."""
    extension = native._extension().__file__
    for asked, wanted in (("1", 1), ("3", 3), ("0", os.cpu_count()), ("many", os.cpu_count())):
        environment = {**os.environ, "NATTEN_ZOO_THREADS": asked}
        command = [sys.executable, "-c", COUNT, extension]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == wanted, asked


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_what_threads_keep_does_not_grow():
    """Rows of 20 channels are packed, which takes about half a megabyte of each task."""
    problem = Problem(Neighborhood.of(2, 9), 1, (96, 96), 2, 2, 20, 20, 0.2, mx.float32)
    inputs = [Case(seed, mx.float32).array(1, 96, 96, 2, 20) for seed in range(3)]

    def resident() -> int:
        for _ in range(5):
            mx.eval(native.forward(problem, *inputs, None, None))
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    resident()
    before = resident()
    assert resident() < before + 2**22


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_all_threads_work():
    native.fma_peak()  # the pool is there now
    count = native._extension().thread_count()
    if count == 1:
        pytest.skip("one processor")
    before, end = ticks(), time.monotonic() + 20
    while time.monotonic() < end:
        native.fma_peak()
        busy = sum(ticks().get(thread, 0) > n for thread, n in before.items())
        if busy >= count:
            return
    pytest.fail(f"{busy} of {count} threads have worked")


def ticks() -> dict[str, int]:
    """Of each thread of the process, what it has taken of a processor."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        found[thread] = int(fields[11]) + int(fields[12])
    return found

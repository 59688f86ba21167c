"""Forcing, explaining, caches and builds under eight threads."""

from __future__ import annotations

import contextvars
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import Neighborhood, backend, known
from natten_zoo.ops.gpu import kernels
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.gpu.plan import lay_out
from natten_zoo.ops.problem import Problem

from .cases import tiers

THREADS = 8


def in_threads(work):
    """Results of `work(i)` in eight threads that begin together."""
    barrier = threading.Barrier(THREADS)

    def run(i: int):
        barrier.wait(30)
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_use_backend_and_explain_are_of_their_thread():
    names = [tiers()[i % len(tiers())] for i in range(THREADS)]
    x = mx.zeros((1, 12, 2, 8))

    def work(i: int) -> set[str]:
        seen = set()
        for kernel_size in itertools.islice(itertools.cycle((3, 5)), 100):
            with ops.use_backend(names[i]):
                seen.add(ops.get_backend())
                found = ops.explain(ops.na1d, x, x, x, kernel_size)
                seen |= {e.tier for e in found}
                assert [e.problem.neighborhood.kernel_size for e in found] == [(kernel_size,)]
        return seen

    assert in_threads(work) == [{name} for name in names]
    assert ops.get_backend() == "auto"


def test_set_backend_is_of_all_threads(monkeypatch):
    monkeypatch.setattr(backend, "_set", "auto")
    ops.set_backend("pure")
    assert in_threads(lambda i: ops.get_backend()) == ["pure"] * THREADS
    with ops.use_backend("auto"):
        assert in_threads(lambda i: ops.get_backend()) == ["pure"] * THREADS
        assert ops.get_backend() == "auto"
        ops.set_backend("nanobind")
        assert ops.get_backend() == "auto"
    assert ops.get_backend() == "nanobind"


def test_a_block_that_fails_leaves_nothing_behind():
    context = contextvars.copy_context()

    def fail() -> None:
        with ops.use_backend("pure"):
            ops.explain(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        context.run(fail)
    assert context.run(ops.get_backend) == "auto"
    assert context.run(ops.explain, lambda: None) == []


@pytest.mark.parametrize("tier", tiers())
def test_results_under_eight_threads(tier, monkeypatch):
    """New problems in all threads at once: the same numbers as in one."""
    monkeypatch.setattr(known, "KEPT", 2)  # emptied all the time
    rng = np.random.default_rng(0)
    sizes = [11 + i for i in range(6)]
    arrays = {n: rng.standard_normal((1, n, n, 2, 8)).astype(np.float32) for n in sizes}

    def gradient(n: int) -> np.ndarray:
        with ops.use_backend(tier):
            x = mx.array(arrays[n])
            return np.array(mx.grad(lambda x: ops.na2d(x, x, x, 5, dilation=2).square().sum())(x))

    got = in_threads(lambda i: [gradient(n) for n in np.roll(sizes, i).tolist()])
    wanted = {n: gradient(n) for n in sizes}
    for i, results in enumerate(got):
        for n, x in zip(np.roll(sizes, i).tolist(), results, strict=True):
            np.testing.assert_array_equal(x, wanted[n])


def test_a_call_is_its_own_whatever_others_forget(monkeypatch):
    monkeypatch.setattr(known, "KEPT", 1)
    x = mx.zeros((1, 9, 1, 4))

    def work(i: int) -> bool:
        slots = [ops.na1d_qk(x, x, k).shape[-1] for k in (2, 3, 4, 5) * 200]
        return slots == [2, 3, 4, 5] * 200

    assert all(in_threads(work))


def test_a_kernel_is_built_once(monkeypatch, caplog):
    """And if it cannot be, every thread is told, but the log once."""
    builds = []

    def refuse(*args):
        builds.append(args)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "_function", refuse)
    hood = Neighborhood.of(1, 3)
    one = Problem(hood, 1, (9,), 1, 1, 8, 8, 1.0, mx.float32)
    device = replace(current(), generation="of eight threads")

    def work(i: int) -> str:
        plan = lay_out(one, device, (8, 8), scale=1.0)
        with use_device(device), pytest.raises(kernels.KernelError) as error:
            kernels.prove("attention_forward", plan, lambda plan: None)
        return str(error.value)

    assert len(set(in_threads(work))) == 1
    assert len(builds) == 2 and len(caplog.records) == 1  # bounded and, as that failed, not

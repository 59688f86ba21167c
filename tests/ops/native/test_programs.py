"""The GPU tier's programs run from C++: the same launches as from Python, or a clear refusal.

No GPU is needed: the C++ side launches through the emulator of tests/metal_emulator.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.metal import MATRIX, SCALAR_4
from natten_zoo.ops import Neighborhood, gpu, native
from natten_zoo.ops.gpu import kernels
from natten_zoo.ops.gpu import programs as gpu_programs
from natten_zoo.ops.gpu.device import current, platform
from natten_zoo.ops.gpu.programs import Program
from natten_zoo.ops.native import programs
from natten_zoo.ops.problem import Problem
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import Case
from .test_native import compiled

OPS = ("forward", "backward", "qk", "qk_backward", "av", "av_backward")


def problem(**changes) -> Problem:
    hood = Neighborhood.of(2, 3, is_causal=(False, True))
    fields = dict(neighborhood=hood, batch=2, spatial=(5, 6), heads=4, kv_heads=2, head_dim=8)
    fields |= dict(value_dim=6, scale=0.3, dtype=mx.float32, has_rpb=True, has_lengths=True)
    return Problem(**(fields | changes))


def program(op: str, p: Problem) -> Program:
    return gpu_programs.program(op, p, current())


class Recorder:
    """What MLX's kernel functions are called with; returns zeros."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, **call) -> list[mx.array]:
        self.calls.append(call)
        shapes, dtypes = call["output_shapes"], call["output_dtypes"]
        return [mx.zeros(s, d) for s, d in zip(shapes, dtypes, strict=True)]

    def launches(self) -> list[dict]:
        """The calls without their arrays, in types that compare."""
        return [
            {
                "inputs": [(x.size, x.dtype) for x in call["inputs"]],
                "template": [(name, type(x), x) for name, x in call["template"]],
                "grid": tuple(call["grid"]),
                "threadgroup": tuple(call["threadgroup"]),
                "shapes": [tuple(s) for s in call["output_shapes"]],
                "dtypes": list(call["output_dtypes"]),
            }
            for call in self.calls
        ]


@pytest.fixture
def recorders(monkeypatch) -> tuple[Recorder, Recorder]:
    """Stand-ins for MLX's kernels below the Python tier and below the C++ one."""
    python, native_ = Recorder(), Recorder()
    monkeypatch.setattr(gpu_programs, "prove", lambda name, plan, trial: None)
    monkeypatch.setattr(kernels, "_function", lambda *args: python)
    monkeypatch.setattr(programs, "_built", lambda *args: native._ext.Kernel.of(native_))
    monkeypatch.setattr(programs, "compiled", programs.compiled.__wrapped__)
    return python, native_


def arrays(op: str, p: Problem) -> list[mx.array]:
    """Arrays that the operation begins with, each in the dtype of the problem."""
    queries = (p.batch, *p.out, p.heads)
    keys = (p.batch, *p.spatial, p.kv_heads)
    slots = (*queries, p.neighborhood.volume)
    shapes = {"query": (*queries, p.head_dim), "key": (*keys, p.head_dim)}
    shapes |= {"value": (*keys, p.value_dim), "stats": (*queries, 2), "d_lse": queries}
    shapes |= {name: (*queries, p.value_dim) for name in ("out", "d_out")}
    shapes |= {name: slots for name in ("attn", "d_logits")}
    wanted = [mx.random.normal(shapes[name]).astype(p.dtype) for name in program(op, p).arrays]
    if p.has_rpb and not op.startswith("av"):
        wanted.append(mx.random.normal((p.heads, *p.neighborhood.bias_shape)).astype(p.dtype))
    return wanted + ([mx.array([[3, 4], [5, 6]], mx.int32)] if p.has_lengths else [])


def call_python(op: str, p: Problem, given: list[mx.array]) -> list[mx.array]:
    rest = list(given[len(program(op, p).arrays) :])
    rpb = rest.pop(0) if p.has_rpb and not op.startswith("av") else None
    main, lengths = given[: len(program(op, p).arrays)], rest[0] if rest else None
    if op.startswith("av"):
        results = getattr(gpu, op)(p, *main[:2], lengths, *main[2:])
    else:
        at = {"forward": 3, "backward": 3}.get(op, 2)
        results = getattr(gpu, op)(p, *main[:at], rpb, lengths, *main[at:])
    results = results if isinstance(results, tuple) else (results,)
    return [x for x in results if x is not None]


@compiled
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"has_rpb": False, "has_lengths": False}, {"dtype": mx.bfloat16}, {"batch": 0}],
    ids=str,
)
def test_launches_are_those_of_python(recorders, op, changes):
    p = problem(**changes) if changes.get("batch") != 0 else problem(batch=0, has_lengths=False)
    given = arrays(op, p)
    wanted = call_python(op, p, given)
    got = programs.compiled(native._ext, op, p, current())(given)
    python, native_ = (r.launches() for r in recorders)
    assert python == native_ and bool(python) == (p.batch > 0)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in wanted]


@compiled
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [mx.float32, pytest.param(mx.bfloat16, marks=pytest.mark.slow)])
def test_results_are_those_of_python(metal, monkeypatch, dtype, seed):  # noqa: F811
    """Bit for bit, in the emulator."""
    of = native._ext.Kernel.of
    monkeypatch.setattr(programs, "_built", lambda ext, *args: of(kernels._function(*args)))
    c = Case(seed, dtype)
    p, extras = c.problem, [x for x in (c.rpb, c.lengths) if x is not None]
    qkv, lengths = [c.query, c.key, c.value], [] if c.lengths is None else [c.lengths]
    out, lse, stats = gpu.forward(p, *qkv, c.rpb, c.lengths)
    attn = mx.random.normal((*c.query.shape[:-1], p.neighborhood.volume)).astype(dtype)
    given = {
        "forward": [*qkv, *extras],
        "backward": [*qkv, out, stats, out, lse, *extras],
        "qk": [c.query, c.key, *extras],
        "qk_backward": [c.query, c.key, attn, *extras],
        "av": [attn, c.value, *lengths],
        "av_backward": [attn, c.value, out, *lengths],
    }
    for op, inputs in given.items():
        got = programs.compiled(native._ext, op, p, current())(inputs)
        for x, y in zip(got, call_python(op, p, inputs), strict=True):
            assert np.array_equal(*(np.array(a.astype(mx.float32)) for a in (x, y)), True), op


@compiled
def test_tier_on_a_gpu(metal, monkeypatch):  # noqa: F811
    """The operators with their gradients, through the rule that all tiers share."""
    of = native._ext.Kernel.of
    monkeypatch.setattr(programs, "_built", lambda ext, *args: of(kernels._function(*args)))
    x, rpb = mx.random.normal((2, 7, 8, 2, 8)), mx.random.normal((2, 5, 5))
    results = {}
    for tier in ("nanobind", "fast_metal"):
        with ops.use_backend(tier):
            results[tier] = mx.vjp(lambda x, r: ops.na2d(x, x, x, 3, rpb=r), [x, rpb], [x])
    for got, wanted in zip(*results.values(), strict=True):
        assert all(map(mx.array_equal, got, wanted))


@compiled
@pytest.mark.parametrize("name", ["fast_metal", "cuda"])
def test_refuses_where_mlx_has_no_gpu(name):
    if platform() is not None:
        pytest.skip("this MLX has a GPU")
    with pytest.raises(RuntimeError, match=r"no (Metal|CUDA) back-end"):
        native._ext.Kernel(platform=name, **kernels.text("qk", name, MATRIX, 1))


@compiled
def test_a_forced_tier_says_what_it_lacks(monkeypatch):
    if platform() is not None:
        pytest.skip("this MLX has a GPU")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    x = mx.zeros((1, 8, 2, 8))
    with (
        ops.use_backend("nanobind"),
        pytest.raises(RuntimeError, match="neither a Metal nor a CUDA back-end"),
    ):
        ops.na1d(x, x, x, 3)


@compiled
def test_a_core_reaches_the_compiled_program(recorders):
    """Also after a program of the same problem was kept for another core, and back."""
    p = problem(has_rpb=False)
    cores = [MATRIX, SCALAR_4, MATRIX]
    for core in cores:
        device = replace(current(), core=core)
        programs.compiled(native._ext, "forward", p, device)(arrays("forward", p))
    first, second, third = recorders[1].launches()
    assert first == third != second
    assert second["threadgroup"][0] <= SCALAR_4.threads


@compiled
def test_arrays_that_are_missing_are_refused(recorders):
    run = programs.compiled(native._ext, "forward", problem(), current())
    with pytest.raises(ValueError, match="do not fit"):
        run(arrays("forward", problem())[:-1])

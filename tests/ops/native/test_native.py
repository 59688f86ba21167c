"""The compiled tier: random problems against float64, and what only this tier promises."""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import autograd, native
from natten_zoo.ops.native.extension import Operation
from natten_zoo.ops.neighborhood import Neighborhood
from natten_zoo.ops.problem import Problem

from .problems import Case, check, exact

compiled = pytest.mark.skipif(native._ext is None, reason=f"native tier: {native._missing}")
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@pytest.fixture
def nanobind():
    with ops.use_backend("nanobind"):
        yield


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_finer", [False, True], ids=["", "finer"])
def test_attention(dtype, is_finer):
    for seed in range(40):
        c = Case(seed, dtype, is_finer)
        inputs = (c.query, c.key, c.value, c.rpb)
        out, lse, stats = native.forward(c.problem, *inputs, c.lengths)
        check((out, lse), c.reference.forward(*map(exact, inputs)), dtype, c.problem)
        d_out, d_lse = c.array(*out.shape), c.array(*lse.shape).astype(mx.float32)
        grads = native.backward(c.problem, *inputs, c.lengths, out, stats, d_out, d_lse)
        wanted = c.reference.backward(*map(exact, (*inputs, d_out, d_lse)))
        check(grads, wanted, dtype, c.problem)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unfused(dtype):
    for seed in range(40):
        c = Case(seed, dtype)
        q, k, v, rpb = c.query, c.key, c.value, c.rpb
        logits = native.qk(c.problem, q, k, rpb, c.lengths)
        check([logits], [c.reference.qk(*map(exact, (q, k, rpb)))], dtype, c.problem)
        d_logits, attn = c.array(*logits.shape), c.array(*logits.shape)
        got = native.qk_backward(c.problem, q, k, rpb, c.lengths, d_logits)
        wanted = c.reference.qk_backward(*map(exact, (q, k, rpb, d_logits)))
        check(got, wanted, dtype, c.problem)
        out = native.av(c.problem, attn, v, c.lengths)
        check([out], [c.reference.av(exact(attn), exact(v))], dtype, c.problem)
        d_out = c.array(*out.shape)
        got = native.av_backward(c.problem, attn, v, c.lengths, d_out)
        wanted = c.reference.av_backward(*map(exact, (attn, v, d_out)))
        check(got, wanted, dtype, c.problem)


@compiled
def test_window_of_many_chunks(nanobind):
    """Windows larger than a chunk of rows: the softmax is rescaled on the way."""
    x = mx.random.normal((1, 31, 31, 1, 16))
    rpb = mx.random.normal((1, 57, 57))
    got = mx.vjp(lambda x, r: ops.na2d(x, x, x, 29, rpb=r), [x, rpb], [x])
    with ops.use_backend("pure"):
        wanted = mx.vjp(lambda x, r: ops.na2d(x, x, x, 29, rpb=r), [x, rpb], [x])
    for a, b in zip(got[0] + got[1], wanted[0] + wanted[1], strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4)


@compiled
def test_strides_of_inputs(nanobind):
    """Views are read where they lie, whichever axis is the contiguous one."""
    qkv = mx.random.normal((2, 9, 10, 3, 4, 24))
    views = [qkv[..., i, :, :] for i in range(3)]
    plain = [mx.contiguous(x) for x in views]
    assert mx.array_equal(ops.na2d(*views, 5), ops.na2d(*plain, 5))
    turned = [mx.contiguous(x.transpose(3, 4, 2, 1, 0)).transpose(4, 3, 2, 0, 1) for x in plain]
    assert mx.array_equal(ops.na2d(*turned, 5), ops.na2d(*plain, 5))
    one = mx.random.normal((1, 1, 1, 4, 24))
    spread = mx.broadcast_to(one, (1, 9, 10, 4, 24))
    assert np.allclose(ops.na2d(spread, spread, spread, 5), np.array(spread), atol=1e-6)


@compiled
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_gradients_repeat_bit_for_bit(nanobind, rank):
    shape = (2, *(40, 18, 9)[rank - 1 : rank] * rank, 4, 16)
    x, rpb = mx.random.normal(shape), mx.random.normal((4, *(5,) * rank))
    na = getattr(ops, f"na{rank}d")
    first, *others = (mx.vjp(lambda x, r: na(x, x, x, 3, rpb=r), [x, rpb], [x])[1] for _ in "abcd")
    for grads in others:
        assert all(map(mx.array_equal, grads, first))


@compiled
def test_compile_and_vmap(nanobind):
    x, rpb = mx.random.normal((3, 2, 11, 11, 2, 8)), mx.random.normal((2, 5, 5))

    def loss(x, rpb):
        return (ops.na2d(x, x, x, 3, rpb=rpb) ** 2).sum()

    grad = mx.grad(loss, (0, 1))
    each = [grad(x[i], rpb) for i in range(3)]
    for many in (mx.vmap(grad, (0, None)), mx.vmap(mx.compile(grad), (0, None))):
        for i, grads in enumerate(zip(*many(x, rpb), strict=True)):
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(grads, each[i], strict=True))
    assert all(map(mx.array_equal, mx.compile(grad)(x[0], rpb), each[0]))


@compiled
@pytest.mark.parametrize("axis", (None, 0, 1))
def test_vmap_folds_lengths_into_the_batch(axis):
    hood = Neighborhood.of(1, 3)
    problem = Problem(hood, 2, (9,), 1, 1, 8, 8, 1.0, mx.float32, has_lengths=True)
    x, lengths = mx.random.normal((3, 2, 9, 1, 8)), mx.array([[[9], [4]], [[5], [9]], [[3], [7]]])
    many = lengths[0] if axis is None else mx.moveaxis(lengths, 0, axis)

    def run(x, lengths):
        return autograd.attention(problem, native)((x, x, x), None, lengths)

    out, lse, _ = mx.vmap(run, (0, axis))(x, many)
    for i in range(3):
        one = run(x[i], lengths[0 if axis is None else i])
        assert mx.array_equal(out[i], one[0]) and mx.array_equal(lse[i], one[1])


@compiled
def test_the_rule_in_cpp_is_that_of_all_tiers(nanobind):
    """What mx.vjp finds in the primitives is what the rule in Python makes of them."""
    c = Case(1, mx.float32)
    problem = replace(c.problem, has_lengths=False)
    qkv, rpb = [c.query, c.key, c.value], [c.rpb] if problem.has_rpb else []
    for op, rule, arrays in (
        ("forward", autograd._attention, qkv + rpb),
        ("qk", autograd._qk, qkv[:2] + rpb),
    ):
        assert_rules_agree(op, rule, problem, arrays)


@compiled
@pytest.mark.parametrize("stride", (1, (2, 3)))
def test_that_of_packed_arrays_likewise(nanobind, stride):
    hood = Neighborhood.of(2, 3, stride=stride, dilation=(1, 2))
    problem = Problem(hood, 2, (9, 8), 4, 2, 8, 8, 0.3, mx.float32, has_rpb=True, has_lengths=True)
    qkv, rpb = mx.random.normal((2, 9, 8, 8, 8)), mx.random.normal((4, 5, 5))
    lengths = mx.array([[9, 8], [4, 7]])
    assert_rules_agree("forward_packed", autograd._packed_attention, problem, [qkv, rpb, lengths])


def assert_rules_agree(op, rule, problem, arrays):
    run = native.differentiable(op, problem)
    extra = problem.has_rpb + problem.has_lengths

    def in_cpp(*arrays):
        first, more = arrays[: len(arrays) - extra], arrays[len(arrays) - extra :]
        return run(first, more[0] if problem.has_rpb else None, *more[problem.has_rpb :] or [None])

    gradients = [mx.random.normal(y.shape) for y in in_cpp(*arrays)]
    in_python = rule(problem, native, exported=False)
    got, wanted = (mx.vjp(f, arrays, gradients) for f in (in_cpp, in_python))
    assert all(map(mx.array_equal, got[0] + got[1], wanted[0] + wanted[1]))


@compiled
@pytest.mark.parametrize("dtype", (mx.float16, mx.int32), ids=str)
def test_cotangents_of_another_dtype(nanobind, dtype):
    """A custom rule behind the operator may hand back what it likes."""
    double = mx.custom_function(lambda x: 2 * x)
    double.vjp(lambda primals, cotangent, output: (2 * cotangent).astype(dtype))
    x = mx.random.normal((1, 9, 2, 8))

    def loss(x, twice):
        return sum(twice(y).sum() for y in ops.na1d(x, x, x, 3, return_lse=True))

    assert mx.array_equal(mx.grad(loss)(x, double), mx.grad(loss)(x, lambda y: 2 * y))


@compiled
def test_arrays_of_other_shapes_are_refused_in_the_graph(nanobind):
    """A shapeless function and a custom rule pass arrays that the validation has not seen."""
    shapeless = mx.compile(lambda x: ops.na1d(x, x, x, 3), shapeless=True)
    shapeless(mx.zeros((2, 20, 1, 8)))
    with pytest.raises(ValueError, match="does not fit"):
        shapeless(mx.zeros((2, 9, 1, 8)))
    total = mx.custom_function(lambda x: x.sum())
    total.vjp(lambda primal, cotangent, output: mx.ones(1))
    with pytest.raises(ValueError, match="does not fit"):
        mx.grad(lambda x: total(ops.na1d(x, x, x, 3)))(mx.zeros((2, 9, 1, 8)))


@compiled
def test_vmap_with_nothing_to_do(nanobind):
    def loss(x, rpb):
        return ops.na1d(x, x, x, 3, rpb=rpb).sum()

    grad = mx.vmap(mx.grad(loss, (0, 1)), (0, None))
    d_x, d_rpb = grad(mx.zeros((3, 0, 9, 2, 8)), mx.zeros((2, 5)))
    assert d_x.shape == (3, 0, 9, 2, 8) and d_rpb.shape == (3, 2, 5) and not d_rpb.any()
    with pytest.raises(ValueError, match="mapped axis is empty"):
        grad(mx.zeros((0, 1, 9, 2, 8)), mx.zeros((2, 5)))


@compiled
def test_compile_merges_equal_calls_only(nanobind):
    x = mx.random.normal((1, 12, 2, 8))

    def pair(x, other):
        return ops.na1d(x, x, x, 3) - ops.na1d(x, x, x, 3, dilation=other)

    assert not mx.any(mx.compile(lambda x: pair(x, 1))(x))
    assert mx.any(mx.compile(lambda x: pair(x, 2))(x))


@compiled
def test_empty_batch(nanobind):
    x, rpb = mx.zeros((0, 8, 2, 8)), mx.ones((2, 5))
    out, grads = mx.vjp(lambda x, r: ops.na1d(x, x, x, 3, rpb=r), [x, rpb], [x])
    assert out[0].shape == grads[0].shape == x.shape
    assert mx.array_equal(grads[1], mx.zeros((2, 5)))


@compiled
def test_nan_and_inf_reach_the_output(nanobind):
    for bad in (np.nan, np.inf):
        x = np.random.default_rng(0).standard_normal((1, 80, 1, 8)).astype(np.float32)
        x[0, 5] = bad
        out = np.array(ops.na1d(mx.array(x), mx.array(x), mx.array(x), 3))
        assert np.isnan(out[0, 4:7]).all()
        assert np.isfinite(out[0, 40:]).all()


@compiled
def test_streams_do_not_disturb_each_other(nanobind):
    x = mx.random.normal((1, 40, 40, 4, 32))
    mx.eval(x)
    wanted = ops.na2d(x, x, x, 7)
    results = []
    for _ in range(4):
        with mx.stream(mx.new_stream(mx.cpu)):
            results.append(ops.na2d(x, x, x, 7))
    mx.eval(wanted, results)
    assert all(mx.array_equal(r, wanted) for r in results)


@compiled
def test_arrays_that_do_not_fit_are_refused():
    p = Problem(Neighborhood.of(1, 3), 1, (8,), 2, 2, 4, 4, 1.0, mx.float32)
    x = mx.zeros((1, 8, 2, 4))
    with pytest.raises(ValueError, match="does not fit"):
        native.forward(p, x, x[:, :7], x, None, None)
    with pytest.raises(ValueError, match="does not fit"):
        native.qk(p, x, x, mx.zeros((2, 3)), None)


def load_tier(monkeypatch, ext: types.ModuleType | None) -> types.ModuleType:
    """The tier's module afresh, over another extension; None stands for a missing one."""
    monkeypatch.setitem(sys.modules, f"{native.__name__}._ext", ext)
    monkeypatch.setitem(sys.modules, native.__name__, native)
    spec = importlib.util.spec_from_file_location(native.__name__, native.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROBLEM = Problem(Neighborhood.of(1, 3), 1, (8,), 2, 2, 4, 4, 1.0, mx.float32)


def test_says_when_not_compiled(monkeypatch, recwarn):
    assert "not compiled" in load_tier(monkeypatch, None).why_not(PROBLEM)
    assert not recwarn


def test_off_with_a_warning_under_another_mlx(monkeypatch):
    ext = types.ModuleType("_ext")
    ext.MLX_VERSION = "0.1.2"
    with pytest.warns(RuntimeWarning, match=r"compiled for MLX 0\.1\.2"):
        tier = load_tier(monkeypatch, ext)
    assert "compiled for MLX 0.1.2" in tier.why_not(PROBLEM)


def test_off_with_a_warning_if_the_face_has_changed_since(monkeypatch):
    """An extension of yesterday lacks what today's tier asks of it."""
    ext = types.ModuleType("_ext")
    ext.MLX_VERSION = mx.__version__
    for face in ({}, {"FACE": "of yesterday"}):
        vars(ext).update(face)
        with pytest.warns(RuntimeWarning, match="again: python scripts/build_native.py"):
            tier = load_tier(monkeypatch, ext)
        assert "compiled from other sources" in tier.why_not(PROBLEM)
    ext.FACE = tier._face()
    assert load_tier(monkeypatch, ext).why_not(PROBLEM) is None


@compiled
def test_the_face_is_that_of_the_extension():
    assert native._face() == native._ext.FACE
    assert {op.name for op in native._ext.Op} == {op.name for op in Operation}


@compiled
def test_peak_is_a_rate():
    assert native._ext.thread_count() >= 1
    assert 1e9 < native.fma_peak() < 1e14

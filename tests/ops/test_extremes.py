"""Numbers at the ends of their range: logits, biases, scales, NaN."""

from __future__ import annotations

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import Neighborhood, gpu, native, pure
from natten_zoo.ops.problem import Problem
from tests.ops.cases import EACH_TIER, emulated, tiers
from tests.reference import Reference

MODULES = {"pure": pure, "nanobind": native, "fast_metal": gpu, "cuda": gpu}
HOODS = {
    "1-D": (Neighborhood.of(1, 7), (40,)),
    "1-D, strided": (Neighborhood.of(1, 8, stride=3, dilation=2, window_stride=2), (45,)),
    "2-D": (Neighborhood.of(2, (3, 5), is_causal=(False, True)), (9, 11)),
    "3-D": (Neighborhood.of(3, (2, 3, 3)), (4, 5, 6)),
}
# The largest normal numbers times which queries and keys are, and what a gradient may be off by,
# relative to what it could be at most (keys that nearly tie feel the rounding of their logits).
FACTORS = {
    mx.float32: ((100.0, 1e3, 3e3, 1e4), 1e-3),
    mx.float16: ((100.0, 1.4e4), 2e-3),  # within +-60,000
    mx.bfloat16: ((1e3, 1e6), 1e-2),
}


def problem_of(name: str, dtype: mx.Dtype, has_rpb: bool) -> Problem:
    hood, spatial = HOODS[name]
    return Problem(hood, 1, spatial, 2, 1, 16, 16, 0.25, dtype, has_rpb)


def run(tier: str, p: Problem, factor: float, bias: float | None = None, seed: int = 0):
    """Results and gradients of a tier and their float64 values, by name."""
    rng = np.random.default_rng(seed)

    def array(*shape: int, times: float = 1.0) -> mx.array:
        return mx.array((times * rng.standard_normal(shape)).astype(np.float32)).astype(p.dtype)

    q = array(1, *p.out, 2, 16, times=factor)
    k, v = array(1, *p.spatial, 1, 16, times=factor or 1.0), array(1, *p.spatial, 1, 16)
    rpb = array(2, *p.neighborhood.bias_shape) if p.has_rpb else None
    if bias is not None:
        rpb = mx.full((2, *p.neighborhood.bias_shape), bias)
    d_out, d_lse = array(1, *p.out, 2, 16), array(1, *p.out, 2).astype(mx.float32)
    out, lse, stats = MODULES[tier].forward(p, q, k, v, rpb, None)
    got = [out, lse, *MODULES[tier].backward(p, q, k, v, rpb, None, out, stats, d_out, d_lse)]
    hood = p.neighborhood
    reference = Reference(
        p.spatial, hood.kernel_size, hood.dilation, hood.stride, hood.window_stride,
        hood.is_causal, p.scale,
    )  # fmt: skip
    given = [None if x is None else np.array(x.astype(mx.float32), np.float64) for x in (q, k, v)]
    shown = None if rpb is None else np.array(rpb.astype(mx.float32), np.float64)
    if bias is not None:  # all keys alike, whatever the number
        shown = np.zeros_like(shown)
    upper = [np.array(x.astype(mx.float32), np.float64) for x in (d_out, d_lse)]
    wanted = [*reference.forward(*given, shown), *reference.backward(*given, shown, *upper)]
    names = ("out", "lse", "d_query", "d_key", "d_value", "d_rpb")
    pairs = zip(names, got, wanted, strict=True)
    return {n: (np.array(x.astype(mx.float32)), y) for n, x, y in pairs if y is not None}


def check_gradients(found: dict, factor: float, tolerance: float) -> None:
    for name, (got, wanted) in found.items():
        # A gradient of saturated weights is a difference of equal numbers: zero but for rounding.
        most = 0.25 * factor if name in ("d_query", "d_key") else 1.0
        scale = max(most, np.abs(wanted).max())
        error = np.abs(got - wanted).max() / scale
        assert error <= tolerance, f"{name} is off by {error:.1e} with logits to {factor:g}^2"


def _each_problem():
    """Hoods, dtypes and tiers; most of those whose kernels the emulator builds first are slow."""
    for name, dtype, tier in itertools.product(HOODS, FACTORS, [*tiers(), *emulated()]):
        usual = tier not in emulated() or (name, dtype) == ("2-D", mx.float16)
        kind = str(dtype).removeprefix("mlx.core.")
        marks = () if usual else pytest.mark.slow
        yield pytest.param(name, dtype, tier, id=f"{name}-{kind}-{tier}", marks=marks)


@pytest.mark.parametrize(("name", "dtype", "tier"), list(_each_problem()))
def test_gradients_of_large_logits(name, dtype, tier):
    """Weights are computed again from logits of 4e7 and more, whose last bits are powers of e."""
    factors, tolerance = FACTORS[dtype]
    for has_rpb in (False, True):
        p = problem_of(name, dtype, has_rpb)
        for factor in factors:
            check_gradients(run(tier, p, factor), factor, tolerance)


@EACH_TIER
def test_weights_of_a_row_add_up_to_one(tier):
    """Backward, too: the gradient of the values for ones is how much each was looked at."""
    p = problem_of("2-D", mx.float32, False)
    for seed, factor in enumerate((1.0, 1e3, 1e4, 1e5, 1e6)):
        rng = np.random.default_rng(seed)
        q = mx.array((factor * rng.standard_normal((1, *p.out, 2, 16))).astype(np.float32))
        k, v = (mx.array(rng.standard_normal((1, *p.spatial, 1, 16)).astype(np.float32)),) * 2
        out, lse, stats = MODULES[tier].forward(p, q, factor * k, v, None, None)
        ones, none = mx.ones_like(out), mx.zeros_like(lse)
        grads = MODULES[tier].backward(p, q, factor * k, v, None, None, out, stats, ones, none)
        assert grads[2][..., 0].sum().item() == pytest.approx(2 * math.prod(p.out), rel=1e-6)
        assert grads[2].min().item() >= 0


@EACH_TIER
@pytest.mark.parametrize("bias", [-1e9, -1e20, -5e29, -math.inf])
def test_a_bias_that_hides_a_whole_row(bias, tier):
    """Its keys are all alike, and the LSE is the bias, at least -1e29 on every tier."""
    p = problem_of("2-D", mx.float32, True)
    found = run(tier, p, 0.0, bias)
    got, _ = found.pop("lse")
    check_gradients(found, 1.0, 1e-6)
    np.testing.assert_allclose(got, max(bias, -1e29), rtol=1e-6)


@EACH_TIER
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_logit_with_a_bias_of_minus_infinity(dtype, tier):
    x = mx.random.normal((1, 9, 1, 8)).astype(dtype)
    rpb = mx.zeros((1, 5), dtype).at[:, 2].add(-mx.inf)  # of each token to itself
    with ops.use_backend(tier):
        logits = np.array(ops.na1d_qk(x, x, 3, rpb=rpb).astype(mx.float32))[0, :, 0]
    assert np.isneginf(logits[1:-1, 1]).all() and np.isfinite(logits[1:-1, ::2]).all()


@EACH_TIER
def test_rows_without_any_key_have_the_same_lse(tier):
    x = mx.random.normal((2, 9, 1, 8), key=mx.random.key(0))
    with ops.use_backend(tier):
        out, lse = ops.na1d_varlen(x, x, x, mx.array([9, 4]), 3, return_lse=True)
    assert mx.all(lse[1, 4:] == -mx.inf) and not out[1, 4:].any()
    assert mx.all(mx.isfinite(lse[1, :4]))


@pytest.mark.parametrize("scale", [1e39, -1e39, 3e38, 10**400, math.inf, math.nan])
def test_a_scale_that_float32_does_not_have(scale):
    x = mx.zeros((1, 9, 1, 8))
    with pytest.raises(ValueError, match=r"\[na1d\] 'scale' must be finite"):
        ops.na1d(x, x, x, 3, scale=scale)
    assert not ops.na1d(x, x, x, 3, scale=2e38).any()


# Queries along an axis that a tier computes together, at most; the docstring of na2d says so.
TOGETHER = {"pure": 64, "nanobind": 16, "fast_metal": 16, "cuda": 16}


@EACH_TIER
@pytest.mark.parametrize("name", ["1-D", "2-D"])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_how_far_a_nan_spreads(which, name, tier):
    """To all who see the token, and beside them only to queries that are computed with one."""
    hood, spatial = Neighborhood.of(len(HOODS[name][1]), 3), (400,) if name == "1-D" else (70, 70)
    arrays = {n: mx.random.normal((1, *spatial, 1, 8)) for n in ("query", "key", "value")}
    at = tuple(n // 2 for n in spatial)
    arrays[which][(0, *at)] = mx.nan
    with ops.use_backend(tier):
        run_it = ops.na1d if len(spatial) == 1 else ops.na2d
        out = np.array(run_it(*arrays.values(), hood.kernel_size))[0, ..., 0, :]
    spoilt = np.argwhere(np.isnan(out).any(axis=-1))
    far = np.abs(spoilt - np.array(at)).max(axis=-1)
    if which == "query":
        assert far.tolist() == [0]
        return
    assert (far <= 1).sum() == 3 ** len(spatial)
    assert far.max() <= 1 + TOGETHER[tier] - 1

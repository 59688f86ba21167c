"""GELU of the compiled tier against its definition in float64, and MLX's."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.layers.activation import gelu
from natten_zoo.ops import native

erf = np.vectorize(math.erf)


@pytest.fixture(autouse=True)
def compiled():
    if not native.is_on_cpu():
        pytest.skip("the native tier is not compiled")


def exact(x):
    """`x Phi(x)` and its derivative in float64."""
    below, density = (1 + erf(x / np.sqrt(2))) / 2, np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return x * below, below + x * density


# Lengths around a vector's, and more than a thread's share.
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (16,), (33,), (32_769,)])
def test_is_exact_to_a_millionth(shape):
    x = np.linspace(-14, 14, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    value, slope = exact(x.astype(np.float64)) if x.size else (x, x)
    given = mx.array(x)
    (out,), (d_x,) = mx.vjp(lambda v: [gelu(v)], [given], [mx.full(shape, 3.0)])
    assert out.shape == d_x.shape == shape
    assert np.abs(np.array(out) - value).max(initial=0) < 1e-6
    assert np.abs(np.array(d_x) - 3 * slope).max(initial=0) < 3e-6


def test_the_tail_keeps_its_digits():
    x = mx.array([-8.0, -6.0, -4.0])
    tails = np.array([6.2209605742717841e-16, 9.8658764503769814e-10, 3.1671241833119921e-05])
    assert np.allclose(np.array(gelu(x)) / np.array(x), tails, rtol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_in_half_precision_it_is_rounded_once(dtype):
    x = mx.linspace(-9, 9, 5001).astype(dtype)
    value, slope = exact(np.array(x.astype(mx.float32)).astype(np.float64))
    d_x = mx.grad(lambda v: gelu(v).sum())(x)
    ulp = 2.0**-10 if dtype == mx.float16 else 2.0**-7
    for ours, wanted in ((gelu(x), value), (d_x, slope)):
        assert ours.dtype == dtype
        assert (
            np.abs(np.array(ours.astype(mx.float32)) - wanted).max() <= ulp * np.abs(wanted).max()
        )


def test_what_is_no_number_and_what_is_too_large():
    given = mx.array([float("nan"), float("inf"), -0.0, 3e38, -3e38])
    wanted = np.array([np.nan, np.inf, 0, 3e38, 0], np.float32)  # MLX's 3e38 is infinite
    assert np.array_equal(np.array(gelu(given)), wanted, equal_nan=True)


def test_a_temporary_is_written_over():
    x = mx.random.normal((40_000,))
    assert mx.array_equal(gelu(x + 0), gelu(x))


def test_views_are_read_as_they_are():
    x = mx.random.normal((6, 7, 8))
    for view in (x.transpose(2, 0, 1), x[::2, :, 1:], mx.broadcast_to(x[:1], x.shape)):
        assert mx.allclose(gelu(view), nn.gelu(view), atol=1e-6)


def test_transformations():
    x = mx.random.normal((5, 6))
    assert mx.allclose(mx.vmap(gelu, in_axes=1, out_axes=1)(x), nn.gelu(x), atol=1e-6)
    assert mx.array_equal(mx.compile(gelu)(x), gelu(x))
    twice = [
        mx.grad(lambda v, f=f: (mx.grad(lambda w: f(w).sum())(v) * mx.sin(v)).sum())(x)
        for f in (gelu, nn.gelu)
    ]
    assert mx.allclose(*twice, atol=1e-5)
    forward = [mx.jvp(f, [x], [mx.cos(x)])[1][0] for f in (gelu, nn.gelu)]
    assert mx.allclose(*forward, atol=1e-5)
    mapped = [
        mx.vmap(lambda v, d, f=f: mx.vjp(f, [v], [d])[1][0], in_axes=(0, None))(x, x[0])
        for f in (gelu, nn.gelu)
    ]
    assert mx.allclose(*mapped, atol=1e-5)


def test_a_forced_tier_is_obeyed():
    x = mx.random.normal((64,))
    with ops.use_backend("pure"):
        assert mx.array_equal(gelu(x), nn.gelu(x))
    with ops.exporting("cpu"):  # what MLX can write to a file
        assert mx.array_equal(gelu(x), nn.gelu(x))
    assert gelu(x.astype(mx.int32)).dtype == nn.gelu(x.astype(mx.int32)).dtype

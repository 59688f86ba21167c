"""Layer norm of the compiled tier against its definition in float64, and MLX's."""

import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.layers.norm import LayerNorm, layer_norm
from natten_zoo.ops import native

EPS = 1e-5


@pytest.fixture(autouse=True)
def compiled():
    if not native.is_on_cpu():
        pytest.skip("the native tier is not compiled")


def exact(x, weight, bias, d_out):
    """Output and gradients in float64, the sums over channels written out."""
    x, weight, bias, d_out = (
        np.array(a.astype(mx.float32), np.float64) for a in (x, weight, bias, d_out)
    )
    off = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(off).mean(-1, keepdims=True) + EPS)
    normed, g = off / deviation, d_out * weight
    along = (g * normed).mean(-1, keepdims=True)
    d_x = (g - g.mean(-1, keepdims=True) - normed * along) / deviation
    rows = tuple(range(x.ndim - 1))
    return normed * weight + bias, d_x, (d_out * normed).sum(rows), d_out.sum(rows)


def problem(shape, dtype=mx.float32, offset=3.0):
    signs = 1 - 2 * (mx.arange(shape[-1]) % 2)  # no row is nearly constant
    x = mx.random.uniform(-0.5, 0.5, shape) + signs + offset
    weight, bias = mx.random.normal((2, shape[-1]))
    return [a.astype(dtype) for a in (x, weight, bias, mx.random.normal(shape))]


def ours(x, weight, bias):
    return layer_norm(x, weight, bias, EPS)


def mlx_s(x, weight, bias):
    return mx.fast.layer_norm(x, weight, bias, EPS)


# Channels around a vector's, rows around a thread's turn (16,384 numbers), and none.
SHAPES = [
    *((3, 7), (2, 3, 16), (33, 17), (4, 130), (2, 100, 512)),
    *((16_384, 3), (257, 64), (3, 20_000), (1, 16_385)),
]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_definition(shape, dtype):
    x, weight, bias, d_out = problem(shape, dtype)
    (out,), grads = mx.vjp(lambda *a: [ours(*a)], [x, weight, bias], [d_out])
    wanted = exact(x, weight, bias, d_out)
    size = (x.size / shape[-1]) ** 0.5  # of a sum of so many random numbers
    ulp = {mx.float32: 2.0**-18, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}[dtype]
    for result, right in zip((out, *grads), wanted, strict=True):
        assert result.dtype == dtype
        assert result.shape == right.shape
        error = np.abs(np.array(result.astype(mx.float32)) - right).max()
        assert error <= ulp * max(size, np.abs(right).max())


def test_of_one_channel():
    x, weight, bias, d_out = problem((5, 1))
    out, (d_x, d_weight, d_bias) = mx.vjp(ours, [x, weight, bias], [d_out])
    assert mx.array_equal(out[0], mx.broadcast_to(bias, x.shape))
    assert mx.allclose(d_x, mx.zeros_like(x), atol=1e-4)  # 1 / sqrt(eps) is large
    assert d_weight.item() == 0
    assert mx.allclose(d_bias, d_out.sum(0))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,)], ids=str)
def test_of_no_rows_and_of_one(shape):
    x, weight, bias, d_out = problem(shape)
    (out,), grads = mx.vjp(lambda *a: [ours(*a)], [x, weight, bias], [d_out])
    assert out.shape == grads[0].shape == shape
    if x.size:
        assert mx.allclose(out, mlx_s(x, weight, bias), atol=1e-5)
    else:
        assert not grads[1].any().item()
        assert not grads[2].any().item()


def test_a_large_mean_does_not_cancel():
    x, weight, bias, d_out = problem((64, 96), offset=1000.0)
    wanted = exact(x, weight, bias, d_out)[0]
    assert np.abs(np.array(ours(x, weight, bias)) - wanted).max() < 1e-3


DIGEST = """
import hashlib, mlx.core as mx, numpy as np
from tests.layers.test_norm import ours, problem
mx.random.seed(0)
x, weight, bias, d_out = problem((5000, 40))
grads = mx.vjp(ours, [x, weight, bias], [d_out])[1]
print(hashlib.sha256(b"".join(np.array(g).tobytes() for g in grads)).hexdigest())
"""


def test_sums_do_not_depend_on_the_number_of_threads():
    digests = set()
    for count in ("1", "2", "5"):
        environment = {**os.environ, "NATTEN_ZOO_THREADS": count}
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_what_is_no_number_stays_in_its_row():
    x, weight, bias, _ = problem((4, 20))
    for value in (float("nan"), float("inf")):
        x[1, 3] = value
        finite = mx.isfinite(ours(x, weight, bias)).all(-1)
        assert finite.tolist() == [True, False, True, True]


def test_temporaries_are_written_over():
    x, weight, bias, d_out = problem((200, 64))
    out = ours(x + 0, weight, bias)
    grads = mx.vjp(ours, [x + 0, weight, bias], [d_out + 0])[1]
    assert mx.array_equal(out, ours(x, weight, bias))
    for one, other in zip(grads, mx.vjp(ours, [x, weight, bias], [d_out])[1], strict=True):
        assert mx.array_equal(one, other)


def test_views_are_read_as_they_are():
    x = mx.random.normal((6, 7, 8))
    for view in (x.transpose(2, 0, 1), x[::2, :, 1:], mx.broadcast_to(x[:1], x.shape)):
        _, *parameters, d_out = problem(view.shape)
        results = [mx.vjp(f, [view, *parameters], [d_out]) for f in (ours, mlx_s)]
        (out, grads), (right, wanted) = results
        for one, other in zip((*out, *grads), (*right, *wanted), strict=True):
            assert mx.allclose(one, other, atol=1e-4)


def test_transformations():
    x, weight, bias, d_out = problem((5, 6))
    more = mx.stack([x, 2 * x + d_out], axis=1)

    def gradient(f):
        return lambda v, w: mx.vjp(f, [v, w, bias], [d_out])[1]

    for transformed in (
        lambda f: [mx.vmap(f, in_axes=(1, None, None))(more, weight, bias)],
        lambda f: mx.vmap(gradient(f), in_axes=(1, None))(more, weight),
        lambda f: [mx.compile(f)(x, weight, bias)],
        lambda f: mx.grad(  # gradients of gradients
            lambda v, w: sum((mx.sin(g) * g).sum() for g in gradient(f)(v, w)), argnums=(0, 1)
        )(x, weight),
        lambda f: mx.jvp(f, [x, weight, bias], [mx.cos(x), weight + 1, bias])[1],
        lambda f: mx.jvp(lambda v: f(v, weight, bias), [x], [mx.cos(x)])[1],
        lambda f: mx.jvp(gradient(f), [x, weight], [mx.cos(x), weight + 1])[1],
        lambda f: mx.grad(lambda v: mx.checkpoint(f)(v, weight, bias).square().sum())(x)[None],
        # A cotangent of another dtype, as a rule of the user's may give.
        lambda f: mx.vjp(f, [x, weight, bias], [d_out.astype(mx.float16)])[1][:1],
    ):
        for one, other in zip(transformed(ours), transformed(mlx_s), strict=True):
            assert mx.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_as_a_layer(options):
    layer, peer = (kind(24, eps=1e-3, **options) for kind in (LayerNorm, nn.LayerNorm))
    x = 1e-2 * mx.random.normal((2, 9, 24))  # eps counts
    assert mx.allclose(layer(x), peer(x), atol=1e-5)
    assert layer.parameters().keys() == peer.parameters().keys()


def test_where_it_is_mlx_s_own():
    x, weight, bias, _ = problem((9, 24))
    with ops.use_backend("pure"):
        assert mx.array_equal(ours(x, weight, bias), mlx_s(x, weight, bias))
    with ops.exporting("cpu"):  # what MLX can write to a file
        assert mx.array_equal(ours(x, weight, bias), mlx_s(x, weight, bias))
    assert ours(x.astype(mx.float16), weight, bias).dtype == mx.float32  # mixed dtypes
    with pytest.raises(ValueError, match="layer_norm"):
        ours(x, weight[1:], bias)

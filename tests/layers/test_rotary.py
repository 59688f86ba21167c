"""Rotation of channels along several axes, and gated linear units."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.layers import SwiGLU, axial_split, grid_places, rotate_at


def rotate_axes(x, split):
    """A whole map, `[batch, *spatial, heads, head_dim]`."""
    tokens = x.shape[:-2]
    index = mx.arange(int(np.prod(tokens))).reshape(tokens)
    return rotate_at(x, grid_places(index, tokens[1:]), split)


@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 64, 96, 128])
def test_the_split_is_of_even_parts(head_dim):
    split = axial_split(head_dim)
    assert sum(split) == head_dim and all(part % 2 == 0 for part in split)
    assert split[1] == split[2]


def test_rotation_is_of_complex_numbers():
    random = np.random.default_rng(0)
    x, split = random.normal(size=(2, 3, 4, 5, 2, 16)), axial_split(16)
    expected, start = [], 0
    for axis, channels in enumerate(split, start=1):
        part = x[..., start : start + channels]
        pairs = part[..., ::2] + 1j * part[..., 1::2]
        places = np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(5)] + [1])
        pairs = pairs * np.exp(1j * places * 10_000.0 ** (-2 * np.arange(channels // 2) / channels))
        expected.append(np.stack([pairs.real, pairs.imag], -1).reshape(part.shape))
        start += channels
    ours = rotate_axes(mx.array(x, mx.float32), split)
    np.testing.assert_allclose(ours, np.concatenate(expected, -1), atol=1e-5)


def test_products_depend_on_the_distance_alone():
    mx.random.seed(0)
    query, key = (mx.broadcast_to(mx.random.normal((16,)), (1, 6, 6, 6, 1, 16)) for _ in range(2))
    query, key = (rotate_axes(x, (4, 6, 6))[0, ..., 0, :] for x in (query, key))
    products = [mx.sum(query[i, 1, 2] * key[i + 2, 4, 1]).item() for i in range(4)]
    np.testing.assert_allclose(products, products[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_rotation_keeps_the_dtype(dtype):
    assert rotate_axes(mx.ones((1, 2, 2, 2, 1, 8), dtype), (4, 2, 2)).dtype == dtype


def test_swiglu():
    mx.random.seed(0)
    layer, x = SwiGLU(8, 16), mx.random.normal((2, 3, 4, 8))
    hidden = mx.sigmoid(layer.w_gate(x)) * layer.w_gate(x) * layer.w_up(x)
    np.testing.assert_allclose(layer(x), layer.w_down(hidden), atol=1e-6)
    assert layer(mx.zeros((0, 4, 8))).shape == (0, 4, 8)

"""Deformable attention against a loop over every head, point and neighbor."""

import math

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.layers import DeformableAttention
from natten_zoo.layers.deformable_attention import centers
from natten_zoo.ops import deformable
from natten_zoo.ops.deformable import sample

SIZES = [(2, 3), (4, 5), (7, 9)]
TOKENS = sum(h * w for h, w in SIZES)


def neighbors(value, x, y):
    """The value of a map `[H, W, D]` at a point, zeros around it."""
    total = np.zeros(value.shape[-1])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < value.shape[0] and 0 <= column < value.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * value[row, column]
    return total


def reference(layer, x, positions):
    """The layer of one image `[tokens, dim]` in float64, one sample after the other."""

    def linear(part, values):
        return values @ np.array(part.weight, np.float64).T + np.array(part.bias, np.float64)

    heads, levels, points = layer.num_heads, layer.num_levels, layer.num_points
    offsets = linear(layer.sampling_offsets, x + positions)
    offsets = offsets.reshape(-1, heads, levels, points, 2)
    weights = np.exp(linear(layer.attention_weights, x + positions).reshape(len(x), heads, -1))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(-1, heads, levels, points)
    values = linear(layer.value_proj, x).reshape(len(x), heads, -1)
    maps = np.split(values, np.cumsum([h * w for h, w in SIZES])[:-1])
    maps = [part.reshape(h, w, heads, -1) for part, (h, w) in zip(maps, SIZES, strict=True)]
    cells = [((c + 0.5) / w, (r + 0.5) / h) for h, w in SIZES for r in range(h) for c in range(w)]
    out = np.zeros((len(x), heads, values.shape[-1]))
    for token, head, level, point in np.ndindex(offsets.shape[:-1]):
        height, width = SIZES[level]
        dx, dy = offsets[token, head, level, point]
        place = cells[token][0] * width + dx - 0.5, cells[token][1] * height + dy - 0.5
        found = neighbors(maps[level][:, :, head], *place)
        out[token, head] += weights[token, head, level, point] * found
    return linear(layer.output_proj, out.reshape(len(x), -1))


def random_layer(scale=2.0):
    mx.random.seed(0)
    layer = DeformableAttention(8, num_heads=2, num_points=4)
    for part in (layer.sampling_offsets, layer.attention_weights):
        part.weight = mx.random.normal(part.weight.shape) * scale
    return layer


@pytest.mark.parametrize("chunk", [deformable.CHUNK, 500])
def test_layer(monkeypatch, chunk):
    monkeypatch.setattr(deformable, "CHUNK", chunk)
    layer = random_layer()  # whose points often lie outside
    x, positions = mx.random.normal((2, 2, TOKENS, 8))
    ours = layer(x, positions, SIZES)
    for image in range(2):
        theirs = reference(layer, *(np.array(part[image], np.float64) for part in (x, positions)))
        np.testing.assert_allclose(ours[image], theirs, atol=2e-5)


def test_points_outside():
    values = mx.random.normal((1, 3, 4, 1, 2))
    places = [(x / 4, y / 4) for x in range(-12, 29) for y in range(-12, 25)]
    ours = sample(values, mx.array(places).reshape(1, -1, 1, 1, 2), mx.ones((1, len(places), 1, 1)))
    theirs = [neighbors(np.array(values)[0, :, :, 0], *place) for place in places]
    np.testing.assert_allclose(ours[0, :, 0], theirs, atol=1e-6)
    assert np.abs(np.array(theirs)[0]).max() == 0 < np.abs(np.array(theirs)).max()


def test_gradients():
    layer = random_layer(scale=0.3)
    x, positions = mx.random.normal((2, 1, TOKENS, 8))
    way, cotangent = mx.random.normal((2, 1, TOKENS, 8))

    def loss(values):
        return (layer(values, positions, SIZES) * cotangent).sum()

    slope = (mx.grad(loss)(x) * way).sum().item()
    step = 1e-3
    difference = (loss(x + step * way) - loss(x - step * way)).item() / (2 * step)
    assert slope == pytest.approx(difference, rel=0.02)


def test_half_precision():
    layer = random_layer(scale=0.3)
    x, positions = mx.random.normal((2, 1, TOKENS, 8))
    full = layer(x, positions, SIZES)
    layer.set_dtype(mx.float16)
    half = layer(x.astype(mx.float16), positions.astype(mx.float16), SIZES)
    assert half.dtype == mx.float16
    np.testing.assert_allclose(half.astype(mx.float32), full, atol=0.02)


def test_it_starts_around_the_token():
    layer = DeformableAttention(32, num_heads=8)
    offsets = np.array(layer.sampling_offsets(mx.zeros(32))).reshape(8, 3, 4, 2)
    np.testing.assert_allclose(offsets[0, :, :, 0], [[1, 2, 3, 4]] * 3, atol=1e-6)
    np.testing.assert_allclose(np.abs(offsets).max(-1)[:, 0], [[1, 2, 3, 4]] * 8, atol=1e-6)


def test_arguments():
    assert centers([(2, 2)]).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    with pytest.raises(ValueError, match="'num_heads' must divide 'dim', 8, but got 3"):
        DeformableAttention(8, num_heads=3)
    with pytest.raises(ValueError, match=r"those of 3 maps but got 60 tokens and maps of \[\(3"):
        DeformableAttention(8, 2)(mx.zeros((1, 60, 8)), mx.zeros((60, 8)), [(3, 4), (6, 8)])

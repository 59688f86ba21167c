"""The weights shown are the weights the layers use."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo.layers import NeighborhoodAttention1D, NeighborhoodAttention2D
from natten_zoo.models import DiNAT, NATConfig
from natten_zoo.viz import LayerView, by_level, reach, rollout, view_layers


def view(layer, *size):
    x = mx.random.normal((1, *size, layer.proj.weight.shape[0]), key=mx.random.key(3))
    return LayerView("layer", layer, x)


def attended(seen, query):
    """The layer's output for one query, from the weights and the values."""
    layer = seen.layer
    x = np.zeros([1, *np.maximum(seen.size, layer.neighborhood.minimum_size), 8], np.float32)
    x[tuple(slice(n) for n in seen.input.shape)] = np.array(seen.input)
    value = np.array(layer.project_qkv(mx.array(x))[2][0])[np.ix_(*seen.window(query))]
    value = np.repeat(value, layer.num_heads // layer.num_kv_heads, axis=-2)
    weights = seen.weights(query).reshape(layer.num_heads, -1)
    mixed = np.einsum("hk,khd->hd", weights, value.reshape(-1, *value.shape[-2:]))
    return np.array(layer.proj(mx.array(mixed.reshape(-1))))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((9, 11), {"dilation": 1}),
        ((9, 11), {"dilation": (2, 3), "rel_pos_bias": True}),
        ((9, 11), {"num_kv_heads": 1, "is_causal": (True, False), "rel_pos_bias": True}),
        ((2, 4), {"dilation": 2, "pad_small_inputs": True, "rel_pos_bias": True}),
    ],
)
def test_weights_are_those_of_the_layer(size, options):
    layer = NeighborhoodAttention2D(8, 2, 3, **options)
    seen = view(layer, *size)
    expected = np.array(layer(seen.input)[0])
    for query in [(0, 0), (1, 3), (size[0] - 1, size[1] - 1)]:
        assert np.allclose(attended(seen, query), expected[query], atol=1e-5)
        assert np.allclose(seen.weights(query).sum(axis=(1, 2)), 1, atol=1e-6)


def test_models_that_call_layers_with_lengths():
    layer = NeighborhoodAttention1D(8, 2, 3)
    model = nn.Sequential(lambda x: layer(x, lengths=[5]), layer)
    assert [seen.size for seen in view_layers(model, mx.zeros((1, 9, 8)))] == [(9,), (9,)]


def test_one_axis():
    layer = NeighborhoodAttention1D(8, 2, 5, dilation=2)
    seen = view(layer, 12)
    assert seen.window((6,))[0].tolist() == [2, 4, 6, 8, 10]
    assert np.allclose(attended(seen, (6,)), np.array(layer(seen.input)[0])[6], atol=1e-5)


def test_weight_map_is_zero_outside_of_the_window():
    seen = view(NeighborhoodAttention2D(8, 2, 3, dilation=2), 9, 9)
    weights = seen.weight_map((0, 8))
    assert weights.shape == (9, 9)
    assert np.argwhere(weights > 0).tolist() == [[y, x] for y in (0, 2, 4) for x in (4, 6, 8)]
    assert np.isclose(weights.sum(), 1, atol=1e-6)


def test_weight_map_leaves_padding_out():
    seen = view(NeighborhoodAttention2D(8, 2, 5, pad_small_inputs=True), 3, 4)
    weights = seen.weight_map((1, 1))
    assert weights.shape == (3, 4)
    assert 0 < weights.sum() < 1  # the rest lies on the padding


def test_view_layers():
    config = NATConfig(8, (1, 2), (2, 4), kernel_size=3, dilations=((2,), (1, 2)), num_classes=5)
    model = DiNAT(config).eval()
    image = mx.random.normal((1, 32, 48, 3))
    before = np.array(model(image))
    views = view_layers(model, image)
    assert [seen.name for seen in views] == [
        "levels.0.blocks.0.attn",
        "levels.1.blocks.0.attn",
        "levels.1.blocks.1.attn",
    ]
    assert [seen.size for seen in views] == [(8, 12), (4, 6), (4, 6)]
    assert views[0].token((0.5, 0.99)) == (4, 11)
    first = model.levels[0].blocks[0].norm1(model.patch_embed(image))
    assert np.allclose(np.array(views[0].input), np.array(first), atol=1e-5)
    assert np.array_equal(np.array(model(image)), before)  # nothing stays patched


def levels(dilations, size, **options):
    """One level of layers with these dilations, all on the same input."""
    layers = [
        NeighborhoodAttention2D(8, 2, 3, dilation=d, rel_pos_bias=True, **options)
        for d in dilations
    ]
    return [view(layer, *size) for layer in layers]


def dense(seen):
    """The mean attention matrix of a layer, `[queries, keys]`."""
    queries = np.ndindex(*seen.size)
    return np.stack([seen.weight_map(query).reshape(-1) for query in queries])


def test_reach_counts_layers():
    level = levels([1, 3], (9, 9))
    needed = reach(level, (4, 0))
    matrix = np.eye(81)[4 * 9]
    expected = np.where(matrix.reshape(9, 9) > 0, 0, -1)
    for count, seen in enumerate(reversed(level), 1):
        matrix = matrix @ dense(seen)
        expected = np.where((expected < 0) & (matrix.reshape(9, 9) > 0), count, expected)
    assert np.array_equal(needed, expected)
    assert needed[4, 0] == 0 and needed[1, 6] == 1 and needed[0, 7] == 2
    assert needed.min() == -1


def test_rollout_is_a_product_of_matrices():
    level = levels([1, 2], (7, 6))
    first, second = ((np.eye(42) + dense(seen)) / 2 for seen in level)
    shares = rollout(level, (2, 5))
    assert shares.shape == (7, 6)
    assert np.allclose(shares.reshape(-1), (second @ first)[2 * 6 + 5], atol=1e-6)


def test_rollout_through_levels_keeps_the_whole():
    fine, coarse = levels([1], (10, 8)), levels([1], (5, 4))
    shares = rollout([*fine, *coarse], (4, 0))
    assert shares.shape == (10, 8)
    assert np.isclose(shares.sum(), 1, atol=1e-5)
    assert shares[5:, :4].sum() > 0.5


def test_rollout_loses_what_padding_gave():
    (seen,) = levels([2], (4, 4), pad_small_inputs=True)
    assert 0.5 < rollout([seen], (1, 1)).sum() < 1


def test_by_level():
    views = [*levels([1, 2], (9, 9)), *levels([1], (7, 7))]
    assert [len(level) for level in by_level(views)] == [2, 1]

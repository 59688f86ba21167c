"""The attention layers against projections and brute force in float64."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.layers import (
    DinatAttention1D,
    DinatAttention2D,
    DinatAttention3D,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from tests.reference import Reference

FACES = (NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D)
DINAT = (DinatAttention1D, DinatAttention2D, DinatAttention3D)
SIZES = ((11,), (9, 8), (5, 6, 7))


def linear(layer, x):
    y = x @ np.asarray(layer.weight, np.float64).T
    return y + np.asarray(layer.bias, np.float64) if "bias" in layer else y


def expected(layer, x):
    """What the layer computes, in float64: padding, projections, attention, crop."""
    hood = layer.neighborhood
    size = x.shape[1:-1]
    if layer.pad_small_inputs:
        missing = [max(0, m - n) for m, n in zip(hood.minimum_size, size, strict=True)]
        x = np.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)])
    if "qkv" in layer:
        cuts = np.cumsum([layer.num_heads, layer.num_kv_heads]) * layer.head_dim
        parts = np.split(linear(layer.qkv, x), cuts, axis=-1)
    else:
        parts = [linear(part, x) for part in (layer.query, layer.key, layer.value)]
    q, k, v = (p.reshape(*p.shape[:-1], -1, layer.head_dim) for p in parts)
    for axis, step in enumerate(hood.stride, start=1):
        q = q.take(range(0, q.shape[axis], step), axis)
    reference = Reference(
        x.shape[1:-1], hood.kernel_size, hood.dilation, hood.stride, hood.window_stride,
        hood.is_causal, layer.scale,
    )  # fmt: skip
    rpb = np.asarray(layer.rpb) if "rpb" in layer else None
    out, _ = reference.forward(q, k, v, rpb)
    kept = [slice(-(-n // s)) for n, s in zip(size, hood.stride, strict=True)]
    out = out[(slice(None), *kept)]
    return linear(layer.proj, out.reshape(*out.shape[:-2], -1))


def check(layer, size, tolerance=2e-6):
    if "rpb" in layer:
        layer.rpb = mx.random.normal(layer.rpb.shape)  # large enough to matter
    x = mx.random.normal((2, *size, layer.num_heads * layer.head_dim))
    ours, want = np.asarray(layer(x)), expected(layer, np.asarray(x, np.float64))
    assert ours.shape == want.shape
    assert np.abs(ours - want).max() < tolerance * max(1, np.abs(want).max())


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(0)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rel_pos_bias": True, "dilation": 2, "kernel_size": 2},
        {"stride": 2, "rel_pos_bias": True},
        {"window_stride": 2},
        {"is_causal": True},
        {"num_kv_heads": 2, "qkv_bias": False},
        {"qk_scale": 0.0},
        {"kernel_size": 4, "rel_pos_bias": True},
        {"kernel_size": 3, "dilation": 3, "stride": 2, "pad_small_inputs": True},
    ],
    ids=str,
)
def test_against_brute_force(rank, options):
    check(FACES[rank - 1](16, 4, **{"kernel_size": 3, **options}), SIZES[rank - 1])


@pytest.mark.parametrize("size", [(3,), (9, 4), (2, 5, 6)])
@pytest.mark.parametrize("kernel_size, dilation", [(5, 1), (2, 3)])
def test_small_inputs_are_padded(size, kernel_size, dilation):
    layer = FACES[len(size) - 1](
        16, 4, kernel_size, dilation=dilation, rel_pos_bias=True, pad_small_inputs=True
    )
    check(layer, size)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"dilation": 4}, {"num_kv_heads": 1, "qkv_bias": False}])
def test_dinat_attention(rank, options):
    check(DINAT[rank - 1](16, 4, 3, **options), SIZES[rank - 1])


def test_sizes_per_axis():
    layer = NeighborhoodAttention3D(
        16, 4, (3, 5, 2), dilation=(1, 1, 3), is_causal=(True, False, False), rel_pos_bias=True
    )
    check(layer, (5, 6, 7))


def test_parameters_are_named_as_upstream():
    layer = NeighborhoodAttention2D(16, 4, 7, rel_pos_bias=True)
    shapes = {name: value.shape for name, value in tree_flatten(layer.parameters())}
    assert shapes == {
        "qkv.weight": (48, 16),
        "qkv.bias": (48,),
        "rpb": (4, 13, 13),
        "proj.weight": (16, 16),
        "proj.bias": (16,),
    }
    names = dict(tree_flatten(DinatAttention1D(16, 4, 5).parameters()))
    assert {name.split(".")[0] for name in names} == {"query", "key", "value", "rpb", "proj"}


def test_positional_arguments_are_upstreams():
    layer = NeighborhoodAttention2D(16, 4, 3, 2, 1, True, 2, False, 0.5, 0.0, 0.0, True)
    assert layer.neighborhood.stride == (2, 2) and layer.neighborhood.is_causal == (True, True)
    assert layer.scale == 0.5 and "bias" not in layer.qkv and "rpb" in layer


def test_small_inputs_are_an_error_unless_padded():
    x = mx.zeros((1, 6, 20, 16))
    with pytest.raises(ValueError, match=r"smallest input that works is \(14, 14\)"):
        NeighborhoodAttention2D(16, 4, 7, dilation=2)(x)
    assert NeighborhoodAttention2D(16, 4, 7, dilation=2, pad_small_inputs=True)(x).shape == x.shape


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_heads": 3}, "'num_heads' must divide 'embed_dim' but got 3 and 16"),
        ({"num_kv_heads": 3}, "'num_kv_heads' must divide 'num_heads' but got 3 and 4"),
        ({"kernel_size": 0}, "'kernel_size' must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, "'kernel_size' must have 2 entries"),
        ({"stride": 4}, "'stride' must not be larger than 'kernel_size'"),
        ({"num_heads": True}, "'num_heads' must be an integer"),
        ({"embed_dim": "16"}, "'embed_dim' must be an integer"),
        ({"qk_scale": float("inf")}, "'qk_scale' must be finite"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises((ValueError, TypeError), match=r"\[NeighborhoodAttention2D\] " + message):
        NeighborhoodAttention2D(**{"embed_dim": 16, "num_heads": 4, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("shape", [(1, 8, 16), (1, 8, 8, 8), (1, 4, 8, 8, 16)])
def test_inputs_are_checked(shape):
    message = r"\[NeighborhoodAttention2D\] the input must have 4 axes and 16 channels but got"
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention2D(16, 4, 3, pad_small_inputs=True)(mx.zeros(shape))


def test_half_precision():
    layer = NeighborhoodAttention2D(16, 4, 3, rel_pos_bias=True)
    x = mx.random.normal((1, 8, 8, 16))
    full = layer(x)
    layer.set_dtype(mx.float16)
    half = layer(x.astype(mx.float16))
    assert half.dtype == mx.float16
    assert mx.abs(half - full).max() < 2e-3


def test_projection_dropout_acts_in_training_only():
    layer = NeighborhoodAttention2D(16, 4, 3, proj_drop=0.5)
    x = mx.random.normal((1, 8, 8, 16))
    assert (layer(x) == 0).any()
    layer.eval()
    assert mx.array_equal(layer(x), layer(x)) and not (layer(x) == 0).any()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"rel_pos_bias": True},
        {"stride": 2, "num_kv_heads": 2},
        {"is_causal": True, "rel_pos_bias": True},
        {"window_stride": 2, "dilation": 2, "kernel_size": 2},
    ],
    ids=str,
)
def test_attention_dropout(rank, options):
    layer = FACES[rank - 1](16, 4, **{"kernel_size": 3, "attn_drop": 0.3, **options})
    x = mx.random.normal((1, *SIZES[rank - 1], 16))
    exact = layer.eval()(x)
    layer.train()
    assert not mx.array_equal(layer(x), layer(x))
    mean = layer(mx.repeat(x, 600, axis=0)).mean(axis=0)
    assert mx.abs(mean - exact[0]).max() < 0.2 * mx.abs(exact).max()
    layer.attn_drop = nn.Identity()  # leaves the two halves of the operator
    assert mx.abs(layer(x) - exact).max() < 1e-5


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"rel_pos_bias": True},
        {"stride": 2, "num_kv_heads": 2},
        {"is_causal": True, "window_stride": 2, "proj_drop": 0.5},
    ],
    ids=str,
)
def test_samples_of_their_own_size(rank, options):
    layer = FACES[rank - 1](16, 4, **{"kernel_size": 3, **options}).eval()
    size = SIZES[rank - 1]
    lengths = [size, tuple(n - 2 for n in size), (3,) * rank]
    x = mx.random.normal((3, *size, 16))
    out = np.array(layer(x, lengths))
    np.testing.assert_array_equal(out, layer(x, mx.array(lengths)))
    for b, length in enumerate(lengths):
        alone = layer(x[b : b + 1][(slice(None), *map(slice, length))])[0]
        part = tuple(map(slice, alone.shape[:-1]))
        np.testing.assert_allclose(out[b][part], alone, atol=1e-5)
        out[b][part] = 0
    assert (out == 0).all()


def test_one_dimensional_lengths_need_no_second_axis():
    layer = NeighborhoodAttention1D(16, 4, 3)
    x = mx.random.normal((2, 8, 16))
    np.testing.assert_array_equal(layer(x, [8, 5]), layer(x, [[8], [5]]))


def test_what_lengths_do_not_go_with():
    x = mx.zeros((1, 8, 16))
    with pytest.raises(ValueError, match="'lengths' must be None with pad_small_inputs"):
        NeighborhoodAttention1D(16, 4, 3, pad_small_inputs=True)(x, [8])
    layer = NeighborhoodAttention1D(16, 4, 3, attn_drop=0.1)
    with pytest.raises(ValueError, match=r"'attn_drop' must be 0 while training .* but got 0\.1"):
        layer(x, [8])
    assert layer.eval()(x, [8]).shape == x.shape


@pytest.mark.parametrize("embed_dim", [0, -16])
def test_channels_must_be_positive(embed_dim):
    for heads in (1, 4):
        with pytest.raises(ValueError, match=rf"'embed_dim' must be positive but got {embed_dim}"):
            NeighborhoodAttention2D(embed_dim, heads, 3)


def test_a_map_smaller_than_its_window_says_what_to_do():
    with pytest.raises(ValueError, match=r"\[NeighborhoodAttention2D\] .* pad_small_inputs=True"):
        NeighborhoodAttention2D(16, 4, 7)(mx.zeros((1, 5, 9, 16)))


def test_attributes_of_a_layer():
    layer = NeighborhoodAttention2D(16, 4, 7, (1, 2), 3, is_causal=(True, False))
    assert (layer.embed_dim, layer.kernel_size, layer.stride) == (16, (7, 7), (1, 2))
    assert (layer.dilation, layer.is_causal) == ((3, 3), (True, False))
    assert "stride" not in dict(layer.parameters())


@pytest.mark.parametrize("name", ["seq_lens", "spatial_sizes"])
def test_lengths_by_their_former_names(name):
    layer, x = NeighborhoodAttention1D(16, 4, 3), mx.random.normal((2, 8, 16))
    with pytest.warns(DeprecationWarning, match=f"'{name}' is 'lengths' here"):
        found = layer(x, **{name: [8, 5]})
    assert mx.array_equal(found, layer(x, [8, 5]))
    with pytest.raises(ValueError, match="'lengths' must be given once"):
        layer(x, [8, 5], **{name: [8, 5]})

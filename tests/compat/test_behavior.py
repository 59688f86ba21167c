"""The shims compute what the releases computed, from their layouts and with their errors."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import ops
from natten_zoo.compat import v014, v015, v017, v020, v021

GOLDEN = Path(__file__).parents[1] / "fixtures" / "ops"


def normal(*shape, seed=0):
    return mx.array(np.random.default_rng(seed).standard_normal(shape), mx.float32)


def heads_last(x):
    return mx.moveaxis(x, 1, -2)


def close(a, b, tolerance=2e-6):
    scale = max(1.0, np.abs(np.array(b)).max())
    return np.abs(np.array(a) - np.array(b)).max() <= tolerance * scale


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("na*.npz")), ids=lambda p: p.stem)
def test_v017_unfused_matches_natten_0_17_5(path):
    data = {k: v for k, v in np.load(path).items()}
    rank = data["q"].ndim - 3
    kernel = round(data["logits"].shape[-1] ** (1 / rank))
    dilation = {"d1": 1, "d2": 2, "d231": (2, 3, 1)}[path.stem.split("_")[-1]]
    q, k, v, rpb = (mx.array(data[n]) for n in ("q", "k", "v", "rpb"))
    qk, av = getattr(v017, f"na{rank}d_qk"), getattr(v017, f"na{rank}d_av")
    scale = float(data["scale"])
    logits = qk(q * scale, k, kernel, dilation, rpb=rpb)
    b, h = data["logits"].shape[:2]  # the file holds those of one head
    assert close(logits[:b, :h], data["logits"])
    assert close(av(mx.softmax(logits, axis=-1), v, kernel, dilation), data["out"])


def test_v014_two_steps_are_one_fused_call():
    q, k, v = (normal(2, 3, 9, 10, 8, seed=i) for i in range(3))
    rpb = normal(3, 9, 9, seed=3)
    attn = mx.softmax(v014.natten2dqkrpb(q * 8**-0.5, k, rpb, 5, 1), axis=-1)
    fused = ops.na2d(heads_last(q), heads_last(k), heads_last(v), 5, rpb=rpb)
    assert close(heads_last(v014.natten2dav(attn, v, 5, 1)), fused)
    assert close(v014.natten2dqkrpb(q, k, None, 5, 1), v014.natten2dqk(q, k, 5, 1))


def test_v014_one_axis():
    q, k, v = (normal(2, 3, 12, 8, seed=i) for i in range(3))
    attn = mx.softmax(v014.natten1dqk(q * 8**-0.5, k, 3, 2), axis=-1)
    fused = ops.na1d(heads_last(q), heads_last(k), heads_last(v), 3, dilation=2)
    assert close(heads_last(v014.natten1dav(attn, v, 3, 2)), fused)


def test_v015_additional_tokens_and_depth():
    q, k, v = (normal(2, 3, 4, 6, 7, 8, seed=i) for i in range(3))
    more_k, more_v = normal(2, 3, 5, 8, seed=3), normal(2, 3, 5, 8, seed=4)
    logits = v015.na3d_qk(q * 8**-0.5, k, 3, 5, 1, 1, more_k)
    assert logits.shape == (2, 3, 4, 6, 7, 3 * 5 * 5 + 5)
    out = v015.na3d_av(mx.softmax(logits, axis=-1), v, 3, 5, 1, 1, more_v)
    fused = ops.na3d(
        *map(heads_last, (q, k, v)),
        (3, 5, 5),
        additional_keys=more_k.transpose(0, 2, 1, 3),
        additional_values=more_v.transpose(0, 2, 1, 3),
    )
    assert close(heads_last(out), fused)


def test_v017_causal_slots_are_masked_last():
    q, k = normal(1, 1, 6, 4), normal(1, 1, 6, 4, seed=1)
    logits = np.array(v017.na1d_qk(q, k, 3, is_causal=True))[0, 0]
    assert np.isneginf(logits[0, 1:]).all() and np.isneginf(logits[1, 2:]).all()
    assert np.isfinite(logits[2:]).all()


def test_v017_bias_with_causal_is_refused():
    q, rpb = normal(1, 2, 8, 4), normal(2, 5)
    with pytest.raises(NotImplementedError, match=r"\[na1d_qk\] a relative positional bias"):
        v017.na1d_qk(q, q, 3, is_causal=True, rpb=rpb)
    with pytest.raises(NotImplementedError, match="NeighborhoodAttention1D"):
        v017.NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)


@pytest.mark.parametrize("module", [v020, v021])
def test_stride_of_new_releases_shares_windows(module):
    x = normal(1, 12, 2, 8)
    out = module.na1d(x, x, x, 5, 3)
    assert out.shape == x.shape
    assert close(out, ops.na1d(x, x, x, 5, window_stride=3))
    assert close(module.na1d(x, x, x, 5, None, None, None, 0.0), ops.na1d(x, x, x, 5))
    with pytest.raises(ValueError, match=r"at least 2 but got -1 \(-1 for a whole axis is natten_"):
        module.na1d(x, x, x, -1)
    with pytest.raises(ValueError, match=r"\[na1d\] 'kernel_size' must be at least 2"):
        module.na1d(x, x, x, 1)


def test_v021_attention_packed_is_attention_of_each():
    q, k, v = (normal(1, 10, 2, 8, seed=i) for i in range(3))
    lengths = mx.array([3, 7], mx.int32)
    packed, lse = v021.attention(
        q, k, v, is_causal=True, seqlens_Q=lengths, seqlens_KV=lengths, return_lse=True
    )
    for rows in (slice(0, 3), slice(3, 10)):
        one, one_lse = v021.attention(
            q[:, rows], k[:, rows], v[:, rows], is_causal=True, return_lse=True
        )
        assert close(packed[:, rows], one) and close(lse[:, rows], one_lse)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "layout, tile, dilation",
    [((5, 6), (2, 3), (1, 2)), ((7,), (3,), None), ((3, 4, 5), (2, 2, 2), None)],
)
def test_v021_tokens_of_a_tile_become_neighbors(layout, tile, dilation, flip):
    step = dilation or (1,) * len(layout)
    x = normal(2, *layout, 2, 3)
    permuted, shape, group = v021.token_permute_operation(x, tile, dilation, flip)
    assert shape == layout and len(permuted) == 2 * np.prod(step)
    turn = slice(None, None, -1 if flip else 1)
    ends = [(d, n // t, t) for d, n, t in zip(step, group, tile, strict=True)]
    sizes = [[e[part] for e in ends][turn] for part in range(3)]  # slowest first
    for place in np.ndindex(*layout):
        digits = [
            (i % d, i // d // t, i // d % t) for i, d, t in zip(place, step, tile, strict=True)
        ]
        indices = [[e[part] for e in digits][turn] for part in range(3)]
        g, *where = (np.ravel_multi_index(i, n) for i, n in zip(indices, sizes, strict=True))
        token = where[0] * np.prod(tile) + where[1]
        assert mx.array_equal(permuted[int(g), int(token)], x[(0, *place)])
    back = v021.token_unpermute_operation(permuted, layout, tile, dilation, flip)
    assert mx.array_equal(back, x)


def test_v021_tools():
    q, k = normal(1, 9, 2, 8), normal(1, 9, 1, 8)
    assert close(v021.na1d_reference(q, q, q, 4, 2), v021.na1d(q, q, q, 4, 2))
    with pytest.raises(ValueError, match=r"\[na1d_reference\].*same number of heads"):
        v021.na1d_reference(q, k, k, 3)
    lengths = mx.array([2, 7], mx.int32)
    *starts, most_q, most_kv = v021.generate_varlen_parameters(q, q, q, lengths, lengths)
    assert [x.tolist() for x in starts] == [[0, 2, 9]] * 2 and (most_q, most_kv) == (7, 7)
    assert v021.generate_varlen_parameters(q, q, q) == (None, None, 0, 0)
    with pytest.raises(ValueError, match="'seqlens_KV' must be"):
        v021.generate_varlen_parameters(q, q, q, lengths)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        v021.token_permute_operation(q[0], (2, 2))
    for name in ("token_permute_varlen_operation", "token_unpermute_varlen_operation"):
        with pytest.raises(NotImplementedError, match="na2d_varlen"):
            getattr(v021, name)(q, {}, (2,))


def test_merge_needs_two():
    x = normal(1, 4, 2, 8)
    with pytest.raises(ValueError, match="at least 2"):
        v021.merge_attentions([x], [x[..., 0]])
    with pytest.raises(ValueError, match="batch, tokens, heads"):
        v020.merge_attentions([x[None]] * 2, [x[None, ..., 0]] * 2)


LAYERS = {
    v014.NeighborhoodAttention2D: ((32, 4, 3), {"rpb"}),
    v015.NeighborhoodAttention3D: ((32, 4, 3), {"rpb"}),
    v017.NeighborhoodAttention2D: ((32, 4, 3), set()),
    v020.NeighborhoodAttention2D: ((32, 4, 3), set()),
    v021.NeighborhoodAttention1D: ((32, 4, 3), set()),
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda c: f"{c.__module__[-4:]}-{c.__name__[-2:]}")
def test_layers_have_the_state_dict_of_their_release(layer):
    arguments, extra = LAYERS[layer]
    module = layer(*arguments)
    assert module.num_heads == 4 and set(module.neighborhood.kernel_size) == {3}
    names = {name for name, _ in tree_flatten(module.parameters())}
    assert names == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"} | extra


def test_old_layers_pad_small_inputs_and_later_ones_raise():
    x = normal(1, 5, 6, 32)
    old = v014.NeighborhoodAttention2D(32, 4, 7, 2)
    assert old(x).shape == x.shape
    padded = mx.pad(x, ((0, 0), (0, 9), (0, 8), (0, 0)))
    assert close(old(x), old(padded)[:, :5, :6])
    with pytest.raises(ValueError, match="smallest input that works"):
        v017.NeighborhoodAttention2D(32, 4, 7, 2)(x)


def test_even_kernels_were_refused_by_unfused_releases():
    q = normal(1, 2, 8, 8, 4)
    with pytest.raises(ValueError, match=r"\[natten2dqk\] 'kernel_size' must be odd but got 4"):
        v014.natten2dqk(q, q, 4, 1)
    with pytest.raises(ValueError, match="must be odd"):
        v015.NeighborhoodAttention2D(32, 4, 6)
    fused = v017.na2d(*[heads_last(q)] * 3, 4)
    assert close(fused, ops.na2d(*[heads_last(q)] * 3, 4))


def test_flop_counter_is_refused_with_the_way_out():
    with pytest.raises(NotImplementedError, match="natten-zoo info"):
        v014.get_flops(nn.Identity(), (1, 3, 8, 8))


@pytest.mark.parametrize("natten", [v020, v021])
def test_stride_of_a_layer_is_what_it_was_given(natten):
    layer = natten.NeighborhoodAttention2D(32, 4, 8, 4)
    assert layer.stride == (4, 4) and layer.kernel_size == (8, 8) and layer.embed_dim == 32

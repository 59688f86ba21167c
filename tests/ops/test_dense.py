"""Plain attention and the merging of attentions."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops


def brute(q, k, v, scale, seen):
    """Float64 attention `[B, Q, H, D]` with a mask `[Q, K]`; heads of K repeated by hand."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (np.array(x.astype(mx.float32), np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    logits = np.where(seen[None, None], scale * np.einsum("bqhd,bkhd->bhqk", q, k), -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.exp(logits - np.where(seen.any(-1)[:, None], logits.max(-1, keepdims=True), 0))
        total = weights.sum(-1, keepdims=True)
        lse = np.log(total[..., 0]) + np.where(seen.any(-1), logits.max(-1), 0)
        out = np.nan_to_num(np.einsum("bhqk,bkhd->bqhd", weights / total, v))
    return out, lse.transpose(0, 2, 1)


def qkv(queries=7, keys=9, heads=4, kv_heads=2, batch=2, dim=8, value_dim=8):
    shapes = (queries, heads, dim), (keys, kv_heads, dim), (keys, kv_heads, value_dim)
    return [mx.random.normal((batch, *s), key=mx.random.key(i)) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("queries, keys", [(7, 9), (9, 7), (8, 8)])
@pytest.mark.parametrize("value_dim", [8, 5])
def test_attention(queries, keys, is_causal, value_dim):
    q, k, v = qkv(queries, keys, value_dim=value_dim)
    seen = np.tri(queries, keys, dtype=bool) if is_causal else np.ones((queries, keys), bool)
    out, lse = ops.attention(q, k, v, is_causal, scale=0.3, return_lse=True)
    want, want_lse = brute(q, k, v, 0.3, seen)
    assert np.allclose(out, want, atol=1e-5) and np.allclose(lse, want_lse, atol=1e-5)
    assert mx.array_equal(out, ops.attention(q, k, v, is_causal, scale=0.3))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_packed_sequences_do_not_see_each_other(is_causal, compiled):
    q, k, v = qkv(12, 15, batch=1)
    q_ends, kv_ends = [0, 3, 7, 7, 9], [0, 5, 6, 9, 9]  # the last has no keys; 3 queries are over
    seen = np.zeros((12, 15), bool)
    for a, b, c, d in zip(q_ends, q_ends[1:], kv_ends, kv_ends[1:], strict=False):
        seen[a:b, c:d] = np.tri(b - a, d - c, dtype=bool) if is_causal else True

    def run(q, k, v, a, b):
        return ops.attention(
            q, k, v, is_causal, cumulative_seqlen_q=a, cumulative_seqlen_kv=b, return_lse=True
        )

    out, lse = (mx.compile(run) if compiled else run)(q, k, v, mx.array(q_ends), mx.array(kv_ends))
    want, want_lse = brute(q, k, v, 8**-0.5, seen)
    assert np.allclose(out, want, atol=1e-5) and np.allclose(lse, want_lse, atol=1e-5)
    ends = mx.array(q_ends), mx.array(kv_ends)
    grads = mx.grad(lambda *x: (run(*x, *ends)[0] ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(mx.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(dtype):
    q, k, v = (x.astype(dtype) for x in qkv())
    out, lse = ops.attention(q, k, v, True, return_lse=True)
    want, want_lse = brute(q, k, v, 8**-0.5, np.tri(7, 9, dtype=bool))
    assert out.dtype == dtype and lse.dtype == mx.float32
    assert np.allclose(out.astype(mx.float32), want, atol=4 * mx.finfo(dtype).eps)
    assert np.allclose(lse, want_lse, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_logits_beyond_what_a_float16_can_be(dtype):
    """As in all tiers, sums and the softmax are in float32, also where each window is the map."""
    q, k, v = ((300 * x).astype(dtype) for x in qkv(7, 7))
    want, want_lse = brute(q, k, v, 8**-0.5, np.ones((7, 7), bool))
    assert want_lse.max() > 65504
    with ops.use_backend("pure"):
        for run in (ops.attention, lambda *x, **more: ops.na1d(*x, kernel_size=7, **more)):
            out, lse = run(q, k, v, return_lse=True)
            assert np.allclose(out.astype(mx.float32), want, rtol=4 * mx.finfo(dtype).eps)
            assert np.allclose(lse, want_lse, rtol=1e-6)


def test_an_empty_batch():
    assert ops.attention(*qkv(batch=0)).shape == (0, 7, 4, 8)
    x, token = mx.zeros((0, 7, 2, 4)), mx.zeros((0, 1, 2, 4))
    for kernel_size in (3, 7):  # by a tier, and as plain attention
        out, lse = ops.na1d(
            x, x, x, kernel_size, additional_keys=token, additional_values=token, return_lse=True
        )
        assert out.shape == x.shape and lse.shape == x.shape[:-1]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda q, k, v: ops.attention(q, k, v[:, :4]), ValueError, "'key' and 'value'"),
        (lambda q, k, v: ops.attention(q[0], k, v), ValueError, "'query' must be"),
        (lambda q, k, v: ops.attention(q[..., :4], k, v), ValueError, "head_dim"),
        (lambda q, k, v: ops.attention(q[:, :, :3], k, v), ValueError, "multiple"),
        (lambda q, k, v: ops.attention(q, k, v, 1), TypeError, "'is_causal' must be a bool"),
        (lambda q, k, v: ops.attention(q, k, v.astype(mx.float16)), TypeError, "one dtype"),
        (lambda q, k, v: ops.attention(q, k, v, scale="1"), TypeError, "'scale' must be a number"),
        (
            lambda q, k, v: ops.attention(q, k, v, cumulative_seqlen_q=mx.array([0, 7])),
            ValueError,
            "given together",
        ),
        (
            lambda q, k, v: ops.attention(
                q, k, v, cumulative_seqlen_q=mx.array([0, 7]), cumulative_seqlen_kv=mx.array([0, 9])
            ),
            ValueError,
            "batch of 1",
        ),
        (
            lambda q, k, v: ops.attention(
                q[:1], k[:1], v[:1], cumulative_seqlen_q=[0, 7], cumulative_seqlen_kv=[0, 9]
            ),
            TypeError,
            "int32",
        ),
    ],
)
def test_attention_errors(call, error, message):
    with pytest.raises(error, match=r"\[attention\].*" + message):
        call(*qkv())


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("lead", [(7,), (2, 7), (2, 3, 4)])
def test_merging_parts_is_attention_to_all(parts, lead):
    q = mx.random.normal((*lead, 2, 8), key=mx.random.key(0))
    keys, values = mx.random.normal((2, 4 * parts, 2, 8), key=mx.random.key(1))

    def attend(q, keys, values):
        logits = mx.einsum("...hd,khd->...hk", q, keys)
        weights = mx.softmax(logits, axis=-1)
        return mx.einsum("...hk,khd->...hd", weights, values), mx.logsumexp(logits, axis=-1)

    def merged(q, keys, values):
        pairs = [
            attend(q, *kv) for kv in zip(*(mx.split(x, parts) for x in (keys, values)), strict=True)
        ]
        return ops.merge_attentions(*map(list, zip(*pairs, strict=True)))

    want, got = attend(q, keys, values), merged(q, keys, values)
    cotangents = [mx.random.normal(x.shape, key=mx.random.key(2)) for x in want]
    (_, a), (_, b) = (
        mx.vjp(lambda *x, f=f: list(f(*x)), [q, keys, values], cotangents) for f in (attend, merged)
    )
    for x, y in zip([*want, *a], [*got, *b], strict=True):
        assert mx.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("size", [1e3, 4e7, 1e20])
def test_merging_parts_of_large_logits(size):
    """Weights add up to 1, forward and backward, where the LSE has no room for the sum."""
    parts, lses = [mx.ones((3, 2, 4))] * 3, [mx.full((3, 2), size)] * 3
    merged, lse = ops.merge_attentions(parts, lses)
    assert mx.allclose(merged, mx.ones_like(merged))
    assert mx.allclose(lse, mx.array(size + np.log(3)), rtol=1e-6)
    grads = mx.grad(lambda *x: ops.merge_attentions(list(x), lses)[0].sum(), (0, 1, 2))(*parts)
    assert all(mx.allclose(g, mx.array(1 / 3)) for g in grads)


def test_merging_what_nobody_sees():
    out, empty = mx.ones((3, 2, 4)), mx.full((3, 2), -mx.inf)
    lse = mx.array([[0.0, 1], [2, 3], [4, 5]])
    merged, total = ops.merge_attentions([out, mx.nan * out], [lse, empty])
    assert mx.array_equal(merged, out) and mx.allclose(total, lse)
    merged, total = ops.merge_attentions([out, 5 * out], [empty, empty])
    assert not merged.any() and mx.array_equal(total, empty)
    grads = mx.grad(
        lambda a, b, x, y: ops.merge_attentions([a, b], [x, y])[0].sum(), argnums=(0, 1, 2, 3)
    )(out, out, empty, empty)
    assert all(not g.any() and mx.isfinite(g).all() for g in grads)


def test_merge_errors():
    x, lse = mx.zeros((3, 2, 4)), mx.zeros((3, 2))
    with pytest.raises(ValueError, match="equally many"):
        ops.merge_attentions([x], [])
    with pytest.raises(ValueError, match="one shape"):
        ops.merge_attentions([x, x], [lse, mx.zeros((3, 3))])
    with pytest.raises(TypeError, match=r"\[merge_attentions\] 'outputs' must be a list"):
        ops.merge_attentions(mx.stack([x, x]), [lse, lse])
    with pytest.raises(TypeError, match=r"\[merge_attentions\] 'lse_tensors' must be an mx.array"):
        ops.merge_attentions([x], [np.zeros((3, 2))])
    with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
        ops.merge_attentions([x.astype(mx.int32)], [lse])

"""Attention over all keys, and the merging of attention over disjoint sets of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce

import mlx.core as mx
import numpy as np

from .neighborhood import Neighborhood
from .problem import Problem, check_floats, check_heads, checked_scale
from .tier import Support

# What attention over all keys can stand in for: where every window is the whole map, and else with
# a mask, of dtypes that MLX does not round on some GPUs (TF32), and of little memory.
WHOLE = Support(features=frozenset(("stride", "window_stride", "finer")))
MASKED = Support(
    features=frozenset(("dilation", "stride", "window_stride", "is_causal")),
    dtypes=(mx.float16, mx.bfloat16),
)
MASK_BYTES, WEIGHT_BYTES = 1 << 25, 1 << 30  # of a mask, and of all weights in training


def why_not(problem: Problem) -> str | None:
    """Why attention over all keys cannot stand in for a problem; None if it can."""
    if problem.neighborhood.covers(problem.spatial):
        return WHOLE.why_not(problem)
    pairs = math.prod(problem.out) * math.prod(problem.spatial)
    if pairs > MASK_BYTES:
        return f"its mask would have {pairs / 1e6:.0f} MB"
    weights = pairs * problem.batch * problem.heads * problem.dtype.size
    if weights > WEIGHT_BYTES:
        return f"its weights would have {weights / 1e9:.1f} GB in training"
    return MASKED.why_not(problem)


@lru_cache(maxsize=8)
def neighborhood_mask(hood: Neighborhood, spatial: tuple[int, ...]) -> mx.array:
    """`[queries, keys]`: whether a kept query sees a key."""
    axes = [hood.mask(axis, length) for axis, length in enumerate(spatial)]
    mask = mx.array(reduce(np.kron, axes).astype(bool))
    mx.eval(mask)
    return mask


def merge_attentions(
    outputs: Sequence[mx.array], lse_tensors: Sequence[mx.array]
) -> tuple[mx.array, mx.array]:
    r"""Attention over the union of disjoint key sets, from the attention over each.

    $$o = \sum_i e^{l_i - l} o_i, \qquad l = \log \sum_i e^{l_i}$$

    Differentiable in the outputs and the LSEs. A set that a query does not see has an LSE of
    `-inf`, and its output is ignored; where all have, output and gradients are zero.

    Args:
        outputs: At least one array `[..., heads, head_dim]`.
        lse_tensors: For each its LSE, natural logarithm, `[..., heads]`.

    Returns:
        `(output, lse)`: in the dtype of `outputs[0]`, and in float32.

    Raises:
        TypeError: If an argument is not a sequence of floating-point arrays.
        ValueError: If numbers or shapes do not fit together.
    """
    for name, several in (("outputs", outputs), ("lse_tensors", lse_tensors)):
        if not isinstance(several, (list, tuple)):
            raise TypeError(
                f"[merge_attentions] '{name}' must be a list of arrays but got "
                f"{type(several).__name__}."
            )
    if not outputs or len(outputs) != len(lse_tensors):
        raise ValueError(
            "[merge_attentions] 'outputs' and 'lse_tensors' must be equally many, at least one, "
            f"but got {len(outputs)} and {len(lse_tensors)}."
        )
    for out, lse in zip(outputs, lse_tensors, strict=True):
        check_floats("merge_attentions", outputs=out)
        check_floats("merge_attentions", lse_tensors=lse)
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                "[merge_attentions] 'outputs' must have one shape and each LSE that shape without "
                f"head_dim but got {out.shape} and {lse.shape} beside {outputs[0].shape}."
            )
    if outputs[0].size == 0:
        return outputs[0], lse_tensors[0].astype(mx.float32)
    # Finite stand-ins for -inf: a difference of two infinities is NaN, also in the gradient.
    stacked = mx.maximum(mx.stack(list(lse_tensors)).astype(mx.float32), -1e30)
    lse = mx.logsumexp(stacked, axis=0)
    seen = lse > -1e29
    # Not exp(stacked - lse): a large LSE is rounded, and such weights do not add up to 1.
    weights = mx.where(seen, mx.softmax(stacked, axis=0, precise=True), 0.0)[..., None]
    values = mx.where(weights > 0, mx.stack(list(outputs)).astype(mx.float32), 0.0)
    total = (weights * values).sum(axis=0)
    return total.astype(outputs[0].dtype), mx.where(seen, lse, -mx.inf)


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    cumulative_seqlen_q: mx.array | None = None,
    cumulative_seqlen_kv: mx.array | None = None,
    return_lse: bool = False,
) -> mx.array | tuple[mx.array, mx.array]:
    r"""Attention of every query to every key, $\mathrm{softmax}(s \, q k^T) \, v$.

    Sequences of different lengths may be packed one after the other into a batch of 1: the
    cumulative lengths say where each starts, and a query sees the keys of its own sequence. The
    mask of packed or causal attention takes one byte per query and key.

    Args:
        query: `[batch, queries, heads, head_dim]`; float32, float16 or bfloat16.
        key: `[batch, keys, kv_heads, head_dim]`, where `kv_heads` divides `heads`.
        value: `[batch, keys, kv_heads, value_dim]`.
        is_causal: Whether query `i` sees only the keys up to `i`, counted from the start of
            its sequence, also where there are more keys than queries (as NATTEN does).
        scale: Factor of the logits. Default: `head_dim ** -0.5`.
        cumulative_seqlen_q: int32 `[sequences + 1]`, starting with 0: the sums of the lengths of
            the packed query sequences. Tokens behind the last sum belong to no sequence.
        cumulative_seqlen_kv: Likewise for keys and values; given if and only if the other is.
        return_lse: Whether to return the logarithm of the sum of exponentials, too.

    Returns:
        `[batch, queries, heads, value_dim]` in the dtype of `query`; with `return_lse` a pair
        with the LSE `[batch, queries, heads]`, float32, natural logarithm. A query that sees
        nothing gives zeros and `-inf`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit together.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 10, 2, 32))
        >>> ends = mx.array([0, 3, 10])  # two sequences, of 3 and of 7 tokens
        >>> packed = ops.attention(x, x, x, cumulative_seqlen_q=ends, cumulative_seqlen_kv=ends)
        >>> alone = ops.attention(x[:, :3], x[:, :3], x[:, :3])
        >>> mx.allclose(packed[:, :3], alone, atol=1e-5).item()
        True
    """
    _check_attention(query, key, value)
    if not isinstance(is_causal, (bool, np.bool_)):
        raise TypeError(f"[attention] 'is_causal' must be a bool but got {is_causal!r}.")
    starts = _check_packed(query, cumulative_seqlen_q, cumulative_seqlen_kv)
    mask = _mask(query.shape[1], key.shape[1], bool(is_causal), starts)
    scale = checked_scale("attention", scale, query.shape[-1])
    out, lse = full_attention(query, key, value, scale, mask)
    return (out, lse) if return_lse else out


def full_attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Attention to all keys that `mask` `[Q, K]` lets through.

    Output `[B, Q, H, Dv]` and LSE `[B, Q, H]`. `query` is `[B, Q, H, D]`, `key`
    `[B, K, Hkv, D]`, `value` `[B, K, Hkv, Dv]`. Being lazy, an LSE that nobody uses costs
    nothing.
    """
    if mask is None:
        return attend_to(query, key, value, scale, None)
    # A row without keys would be 0 / 0: let it see the first one and drop the result.
    some = mask.any(axis=-1)[:, None]
    safe = mask | (~some & (mx.arange(mask.shape[1]) == 0))
    out, lse = attend_to(query, key, value, scale, safe)
    return mx.where(some[..., None], out, mx.zeros((), out.dtype)), mx.where(some, lse, -mx.inf)


def attend_to(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The same with a mask that leaves every query a key."""
    if query.size == 0 or key.size == 0:  # an empty batch, or no keys
        shape = query.shape[:-1]
        return mx.zeros((*shape, value.shape[-1]), query.dtype), mx.full(shape, -mx.inf)
    dtype = query.dtype
    if mx.default_device() == mx.cpu:
        # There MLX multiplies in the arrays' dtype: a float16 has no logit beyond 65,504.
        query, key, value = (x.astype(mx.float32) for x in (query, key, value))
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, H, N, D]
    out = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
    grouped = mx.unflatten(query, 1, (key.shape[1], -1))  # [B, Hkv, H / Hkv, Q, D]
    logits = scale * (grouped.astype(mx.float32) @ key[:, :, None].astype(mx.float32).mT)
    lse = mx.logsumexp(logits if mask is None else mx.where(mask, logits, -mx.inf), axis=-1)
    return out.transpose(0, 2, 1, 3).astype(dtype), lse.flatten(1, 2).transpose(0, 2, 1)


def _mask(
    queries: int, keys: int, is_causal: bool, starts: tuple[mx.array, mx.array] | None
) -> mx.array | None:
    """`[queries, keys]`: who sees whom; None if everybody sees everything."""
    if starts is None:
        return mx.arange(queries)[:, None] >= mx.arange(keys) if is_causal else None
    of_query, query = _sequences(queries, starts[0])
    of_key, key = _sequences(keys, starts[1])
    mask = (of_query[:, None] == of_key) & (of_query < starts[0].size - 1)[:, None]
    return mask & (query[:, None] >= key) if is_causal else mask


def _sequences(tokens: int, starts: mx.array) -> tuple[mx.array, mx.array]:
    """Of each token its sequence and its place in it, `[tokens]`."""
    token = mx.arange(tokens)
    sequence = (token[:, None] >= starts[1:]).sum(axis=-1)
    return sequence, token - starts[sequence]


def _check_attention(query: mx.array, key: mx.array, value: mx.array) -> None:
    check_floats("attention", query=query, key=key, value=value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or 0 in x.shape[1:]:
            raise ValueError(
                f"[attention] '{name}' must be [batch, tokens, heads, head_dim], not empty but for "
                f"its batch, but got {x.shape}."
            )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            "[attention] 'key' and 'value' must have the same batch, tokens and heads but got "
            f"{key.shape} and {value.shape}."
        )
    if (query.shape[0], query.shape[-1]) != (key.shape[0], key.shape[-1]):
        raise ValueError(
            "[attention] 'query' and 'key' must have the same batch and head_dim but got "
            f"{query.shape} and {key.shape}."
        )
    check_heads("attention", query.shape[-2], key.shape[-2])


def _check_packed(
    query: mx.array, starts_q: mx.array | None, starts_kv: mx.array | None
) -> tuple[mx.array, mx.array] | None:
    if starts_q is None and starts_kv is None:
        return None
    if starts_q is None or starts_kv is None:
        raise ValueError(
            "[attention] 'cumulative_seqlen_q' and 'cumulative_seqlen_kv' must be given together."
        )
    if query.shape[0] != 1:
        raise ValueError(
            f"[attention] packed sequences must have a batch of 1 but got {query.shape[0]}."
        )
    for name, x in (("cumulative_seqlen_q", starts_q), ("cumulative_seqlen_kv", starts_kv)):
        if not isinstance(x, mx.array) or x.dtype != mx.int32:
            raise TypeError(f"[attention] '{name}' must be an int32 mx.array but got {x!r}.")
        if x.ndim != 1 or x.size < 2 or x.shape != starts_q.shape:
            raise ValueError(
                f"[attention] '{name}' must have one entry per sequence and one more but got "
                f"{x.shape} beside {starts_q.shape}."
            )
    return starts_q, starts_kv

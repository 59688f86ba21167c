"""The unfused operators up to NATTEN 0.17: heads first, unscaled, odd square kernels."""

from __future__ import annotations

import math

import mlx.core as mx

from ..ops.neighborhood import BoolOrBools, IntOrInts, Neighborhood, per_axis
from ..ops.unfused import attend_av, attend_qk


def qk(
    op: str,
    rank: int,
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits of a window, then those of the additional keys, all unscaled.

    Args:
        op: Name in errors.
        rank: Spatial axes.
        query: `[batch, heads, *spatial, head_dim]`.
        key: Likewise.
        kernel_size: Odd.
        dilation: Step between keys.
        is_causal: Masked keys have a logit of `-inf`, in the last slots.
        rpb: `[heads, 2 * kernel_size - 1 per axis]` or None.
        additional_keys: `[batch, heads, tokens, head_dim]` or None.

    Returns:
        `[batch, heads, *spatial, prod(kernel_size) + tokens]`.
    """
    check_odd(op, rank, kernel_size)
    query_last, key_last = (
        heads_last(op, rank, name, x) for name, x in (("query", query), ("key", key))
    )
    hood = Neighborhood.of(rank, kernel_size, dilation=dilation, is_causal=is_causal, op=op)
    logits = attend_qk(hood, query_last, key_last, scale=1.0, rpb=rpb, op=op)
    logits = mx.moveaxis(logits, -2, 1)
    if additional_keys is None:
        return logits
    check_additional(op, "additional_keys", additional_keys, query)
    cross = query.flatten(2, -2) @ additional_keys.mT  # [B, heads, tokens, additional]
    return mx.concatenate([logits, cross.reshape(*query.shape[:-1], -1)], axis=-1)


def av(
    op: str,
    rank: int,
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    additional_values: mx.array | None = None,
) -> mx.array:
    """The values of a window and the additional ones, weighted: the other half of `qk`.

    `attn` is `[batch, heads, *spatial, prod(kernel_size) + tokens]`, the output shaped as
    `value`, `[batch, heads, *spatial, head_dim]`.
    """
    volume = math.prod(check_odd(op, rank, kernel_size))
    extra = 0
    if additional_values is not None:
        check_additional(op, "additional_values", additional_values, value)
        extra = additional_values.shape[2]
    if attn.shape[-1] != volume + extra:
        raise ValueError(
            f"[{op}] 'attn' must have {volume + extra} weights per query but got {attn.shape}."
        )
    weights = heads_last(op, rank, "attn", attn[..., :volume])
    values = heads_last(op, rank, "value", value)
    hood = Neighborhood.of(rank, kernel_size, dilation=dilation, is_causal=is_causal, op=op)
    out = attend_av(hood, weights, values, op=op)
    out = mx.moveaxis(out, -2, 1)
    if additional_values is None:
        return out
    cross = attn[..., volume:].flatten(2, -2) @ additional_values
    return out + cross.reshape(out.shape)


def heads_last(op: str, rank: int, name: str, x: mx.array) -> mx.array:
    """`[batch, heads, *spatial, dim] -> [batch, *spatial, heads, dim]`."""
    if not isinstance(x, mx.array) or x.ndim != rank + 3:
        got = x.shape if isinstance(x, mx.array) else type(x).__name__
        raise ValueError(
            f"[{op}] '{name}' must have {rank + 3} axes [batch, heads, ..., dim] but got {got}."
        )
    return mx.moveaxis(x, 1, -2)


def check_odd(op: str, rank: int, kernel_size: IntOrInts) -> tuple[int, ...]:
    """The kernel size per axis; raises a `ValueError` unless odd, as the release did."""
    kernel = per_axis(op, "kernel_size", kernel_size, rank)
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"[{op}] 'kernel_size' must be odd but got {kernel_size}.")
    return kernel


def check_additional(op: str, name: str, tokens: mx.array, like: mx.array) -> None:
    """Raises unless `tokens` is `[batch, heads, tokens, head_dim]` to go with `like`."""
    if tokens.ndim != 4 or tokens.shape[:2] != like.shape[:2] or tokens.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"[{op}] '{name}' must have shape [{like.shape[0]}, {like.shape[1]}, tokens, "
            f"{like.shape[-1]}] but got {tokens.shape}."
        )

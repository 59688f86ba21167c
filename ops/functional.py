"""Neighborhood attention: validate, describe the neighborhood, hand it to a tier.

The three ranks are thin wrappers around one function. Arrays are heads-last:
``[batch, length, heads, head_dim]``, ``[batch, height, width, heads, head_dim]``,
``[batch, depth, height, width, heads, head_dim]``.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import autograd, backend
from .dense import full_attention, merge_attentions
from .neighborhood import BoolOrBools, IntOrInts, Neighborhood
from .problem import Problem, attention_problem, check_floats, downsample

Result = mx.array | tuple[mx.array, mx.array]
AdditionalTokens = tuple[mx.array | None, mx.array | None]


def na2d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    r"""2-D neighborhood attention (Hassani et al., https://arxiv.org/abs/2204.07143), dilated
    (https://arxiv.org/abs/2209.15001), strided and causal per axis.

    $$o_i = \sum_{j \in N(i)} \mathrm{softmax}_j(s \, q_i \cdot k_j + b_{(j - i) / d}) \, v_j$$

    [`Neighborhood`][] defines $N(i)$. Sums and the softmax are in float32. Differentiable
    in every array (once, in reverse mode); the gradients are the same bits from run to run. Tiers
    work on tiles of tokens, in which a key that a query does not see has the weight zero: a NaN or
    an infinity in one token may so reach queries beside its window.

    Args:
        query: ``[batch, height, width, heads, head_dim]``; float32, float16 or bfloat16.
        key: ``[batch, height, width, kv_heads, head_dim]``, where ``kv_heads`` divides ``heads``:
            query head ``h`` uses key head ``h // (heads // kv_heads)``.
        value: ``[batch, height, width, kv_heads, value_dim]``.
        kernel_size: Keys per query and axis, an integer or one per axis.
        stride: Keeps the queries 0, s, 2s, ...: the output has ``ceil(size / stride)`` tokens. Not
            what NATTEN >= 0.20 calls stride: that is ``window_stride``.
        dilation: Step between the keys of a window.
        is_causal: Whether a query sees only keys up to itself, for all axes or one per axis.
        scale: Factor of the logits, a finite number. Default: ``head_dim ** -0.5``.
        rpb: Relative position bias ``[heads, 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1]``,
            added after scaling at the index ``(key - query) / dilation + kernel_size - 1``.
        additional_keys: ``[batch, tokens, kv_heads, head_dim]``: keys that every query sees, too.
        additional_values: ``[batch, tokens, kv_heads, value_dim]``.
        window_stride: Queries that share the window of their leader (generalized neighborhood
            attention, https://arxiv.org/abs/2504.16922); the output keeps its size.
        return_lse: Whether to return the logarithm of the sum of exponentials, too.

    Returns:
        ``[batch, height', width', heads, value_dim]`` in the dtype of ``query``; with
        ``return_lse`` a pair with the LSE ``[batch, height', width', heads]``, float32, natural
        logarithm, additional keys included.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or ``kernel_size * dilation`` exceeds an axis.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 14, 14, 2, 32))
        >>> ops.na2d(x, x, x, kernel_size=7, dilation=2).shape
        (1, 14, 14, 2, 32)
        >>> ops.na2d(x, x, x, kernel_size=(3, 5), stride=2, is_causal=(True, False)).shape
        (1, 7, 7, 2, 32)
    """
    hood = Neighborhood.of(
        2,
        kernel_size,
        dilation=dilation,
        stride=stride,
        window_stride=window_stride,
        is_causal=is_causal,
        op="na2d",
    )
    additional = additional_keys, additional_values
    return _attend("na2d", hood, query, key, value, scale, rpb, additional, return_lse)


def na1d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """1-D neighborhood attention: [`na2d`][] on ``[batch, length, heads, head_dim]``.

    ``rpb`` is ``[heads, 2 * kernel_size - 1]``.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 100, 2, 32))
        >>> out, lse = ops.na1d(x, x, x, kernel_size=7, is_causal=True, return_lse=True)
        >>> out.shape, lse.shape
        ((1, 100, 2, 32), (1, 100, 2))
    """
    hood = Neighborhood.of(
        1,
        kernel_size,
        dilation=dilation,
        stride=stride,
        window_stride=window_stride,
        is_causal=is_causal,
        op="na1d",
    )
    additional = additional_keys, additional_values
    return _attend("na1d", hood, query, key, value, scale, rpb, additional, return_lse)


def na3d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """3-D neighborhood attention: [`na2d`][] with one more axis in front.

    Arrays are ``[batch, depth, height, width, heads, head_dim]``; ``rpb`` has one entry per head
    and relative position, ``[heads, 2 * kernel_size - 1 per axis]``.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> clip = mx.random.normal((1, 8, 14, 14, 2, 16))
        >>> ops.na3d(clip, clip, clip, (3, 7, 7), is_causal=(True, False, False)).shape
        (1, 8, 14, 14, 2, 16)
    """
    hood = Neighborhood.of(
        3,
        kernel_size,
        dilation=dilation,
        stride=stride,
        window_stride=window_stride,
        is_causal=is_causal,
        op="na3d",
    )
    additional = additional_keys, additional_values
    return _attend("na3d", hood, query, key, value, scale, rpb, additional, return_lse)


def _attend(
    op: str,
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None,
    rpb: mx.array | None,
    additional: AdditionalTokens,
    return_lse: bool,
) -> Result:
    problem = attention_problem(op, hood, query, key, value, scale, rpb)
    _check_additional(op, problem, *additional)
    query = downsample(problem, query)
    plain = hood.covers(problem.spatial) and rpb is None
    if plain and not backend.outruns_dense(problem):
        return _dense(problem, query, key, value, additional, return_lse)
    tier = backend.choose(problem, op)
    arrays = [query, key, value] if rpb is None else [query, key, value, rpb]
    out, lse = autograd.attention(problem, tier)(*arrays)
    keys, values = additional
    if keys is not None and values is not None:
        extra, extra_lse = full_attention(query.flatten(1, -3), keys, values, problem.scale)
        extra, extra_lse = extra.reshape(out.shape), extra_lse.reshape(lse.shape)
        out, lse = merge_attentions([out, extra], [lse, extra_lse])
    return (out, lse) if return_lse else out


def _dense(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    additional: AdditionalTokens,
    return_lse: bool,
) -> Result:
    """Plain self-attention, where every window is the whole input."""
    backend.record(problem, "dense")
    shape = query.shape[:-1]
    query, key, value = (x.flatten(1, -3) for x in (query, key, value))  # [B, tokens, H, D]
    keys, values = additional
    if keys is not None and values is not None:
        key = mx.concatenate([key, keys], axis=1)
        value = mx.concatenate([value, values], axis=1)
    out, lse = full_attention(query, key, value, problem.scale)
    out = out.reshape(*shape, problem.value_dim)
    return (out, lse.reshape(shape)) if return_lse else out


def _check_additional(
    op: str, problem: Problem, keys: mx.array | None, values: mx.array | None
) -> None:
    """Raises unless additional keys and values are both absent or fit the problem."""
    if keys is None and values is None:
        return
    if keys is None or values is None:
        raise ValueError(
            f"[{op}] 'additional_keys' and 'additional_values' must be given together."
        )
    check_floats(op, additional_keys=keys, additional_values=values)
    heads = problem.kv_heads
    expected = {"additional_keys": problem.head_dim, "additional_values": problem.value_dim}
    for (name, dim), x in zip(expected.items(), (keys, values), strict=True):
        fits = x.ndim == 4 and x.shape[0] == problem.batch and x.shape[2:] == (heads, dim)
        if not fits or x.shape[1] != keys.shape[1] or x.dtype != problem.dtype:
            raise ValueError(
                f"[{op}] '{name}' must have shape [{problem.batch}, tokens, {heads}, {dim}] and "
                f"dtype {problem.dtype} but got {x.shape} and {x.dtype}."
            )


# By the number of axes.
OPERATORS: dict[int, Any] = {1: na1d, 2: na2d, 3: na3d}

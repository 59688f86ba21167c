"""Attention to the query, key and value of one array, as a layer's projection makes it.

Every tier reads the three where they lie, and none copies them. Their gradients are one array, too,
which the kernels and the compiled tier write at once, zeros of queries that are left out included:
nothing has to be joined. The pure tier is of MLX's operations, none of which writes to a part of
another's output: it joins them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import autograd, backend, known
from .functional import OutAndLSE, Rest, Result, attend_densely
from .neighborhood import BoolOrBools, IntOrInts, Neighborhood
from .problem import (
    Problem,
    attention_problem,
    check_floats,
    check_heads,
    check_neighborhood,
    split_heads,
    unpack,
)
from .varlen import Sizes, checked_lengths


def attend_packed(
    hood: Neighborhood,
    qkv: mx.array,
    num_heads: int | None = None,
    *,
    scale: float | None = None,
    rpb: mx.array | None = None,
    sizes: Sizes | None = None,
    op: str | None = None,
    return_lse: bool = True,
) -> Result:
    """[`attend`][natten_zoo.ops.attend] to the parts of one array, of any rank.

    Args:
        hood: Who sees whom; its rank is that of the array.
        qkv: `[batch, *spatial, 3, heads, head_dim]`, or with `num_heads` `[batch, *spatial,
            num_heads + 2 * kv_heads, head_dim]`: see [`na2d_qkvpacked`][].
        num_heads: Of the queries.
        scale: As in [`na2d`][natten_zoo.ops.na2d].
        rpb: `[heads, *hood.bias_shape]`.
        sizes: Integers `[batch, rank]`: see [`na2d_varlen`][natten_zoo.ops.na2d_varlen].
        op: Who asks, for messages. Default: `na{rank}d_qkvpacked`.
        return_lse: Whether to return the LSE, too: a GPU computes it only then.

    Returns:
        The output and, with `return_lse`, the LSE, as `na2d_qkvpacked`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.
    """
    operator = "attend_packed" if sizes is None else "attend_packed, varlen"
    options = op, type(num_heads), num_heads, return_lse
    call = known.kind(operator, options, hood, scale, qkv, rpb)
    rest: Rest | None = known.rest(call)
    if rest is None:
        check_neighborhood("attend_packed", hood)
        op = op or f"na{hood.rank}d_qkvpacked"
        heads = _checked_heads(op, hood.rank, qkv, num_heads)
        query, key, value = split_heads(_in_a_row(qkv, hood.rank), heads)
        has = {"has_lengths": sizes is not None, "has_lse": return_lse}
        problem = attention_problem(op, hood, query, key, value, scale, rpb, **has)
        rest = known.keep(call, _rest(op, problem))
    out, lse = rest(qkv, rpb, sizes)
    return (out, lse) if return_lse else out


def _rest(op: str, problem: Problem) -> Rest:
    """What is left to do with the arrays of a problem, once it is chosen who computes it."""
    tier = backend.choose_attention(problem, op, may_be_dense=not problem.has_lengths)
    run = None if tier is None else autograd.packed_attention(problem, tier)

    def rest(qkv: mx.array, rpb: mx.array | None, sizes: Sizes | None) -> OutAndLSE:
        qkv = _in_a_row(qkv, problem.rank)
        if run is None:
            return attend_densely(problem, *unpack(problem, qkv))
        lengths = None if sizes is None else checked_lengths(op, sizes, problem)
        out, lse, *_ = run((qkv,), rpb, lengths)
        return out, lse

    return rest


def na2d_qkvpacked(
    qkv: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    num_heads: int | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """[`na2d`][natten_zoo.ops.na2d] to the query, key and value of one array, under the name that
    flash-attention has for it (https://github.com/Dao-AILab/flash-attention).

    The same numbers as those of `na2d` on the three parts. What it adds is the gradient, one array
    that nobody has to join; the pure tier joins it, by a copy.

    Args:
        qkv: `[batch, height, width, 3, heads, head_dim]`, in this order: query, key, value.
            With fewer heads of keys and values than of queries `[batch, height, width, num_heads
            + 2 * kv_heads, head_dim]`: the heads of the queries, then those of the keys, then
            those of the values. So a projection to all their channels makes it.
        kernel_size: Keys per query and axis. This and what follows as in `na2d`.
        stride: Keeps the queries 0, s, 2s, ...
        dilation: Step between the keys of a window.
        is_causal: Whether a query sees only keys up to itself.
        scale: Factor of the logits. Default: `head_dim ** -0.5`.
        num_heads: Of the queries: needed where heads are in one row, and only there.
        rpb: Relative position bias `[heads, 2 * kernel_size - 1 per axis]`.
        window_stride: Queries that share the window of their leader.
        return_lse: Whether to return the logarithm of the sum of exponentials, too.

    Returns:
        `[batch, height', width', heads, head_dim]` in the dtype of `qkv`; with `return_lse` a
        pair with the LSE `[batch, height', width', heads]`, float32.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> qkv = mx.random.normal((1, 14, 14, 3, 4, 32))
        >>> out = ops.na2d_qkvpacked(qkv, kernel_size=7)
        >>> query, key, value = (qkv[..., i, :, :] for i in range(3))
        >>> mx.array_equal(out, ops.na2d(query, key, value, kernel_size=7)).item()
        True
        >>> grouped = mx.random.normal((1, 14, 14, 4 + 2 * 2, 32))  # two heads of keys and values
        >>> ops.na2d_qkvpacked(grouped, kernel_size=7, num_heads=4).shape
        (1, 14, 14, 4, 32)
    """
    hood = Neighborhood.of(
        2, kernel_size, dilation, stride, window_stride, is_causal, op="na2d_qkvpacked"
    )
    return attend_packed(hood, qkv, num_heads, scale=scale, rpb=rpb, return_lse=return_lse)


def na1d_qkvpacked(
    qkv: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    num_heads: int | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """1-D [`na2d_qkvpacked`][]: `[batch, length, 3, heads, head_dim]`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> qkv = mx.random.normal((1, 100, 3, 2, 32))
        >>> ops.na1d_qkvpacked(qkv, kernel_size=7, is_causal=True).shape
        (1, 100, 2, 32)
    """
    hood = Neighborhood.of(
        1, kernel_size, dilation, stride, window_stride, is_causal, op="na1d_qkvpacked"
    )
    return attend_packed(hood, qkv, num_heads, scale=scale, rpb=rpb, return_lse=return_lse)


def na3d_qkvpacked(
    qkv: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    *,
    num_heads: int | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """3-D [`na2d_qkvpacked`][]: `[batch, depth, height, width, 3, heads, head_dim]`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> qkv = mx.random.normal((1, 8, 14, 14, 3, 2, 16))
        >>> ops.na3d_qkvpacked(qkv, (3, 7, 7), is_causal=(True, False, False)).shape
        (1, 8, 14, 14, 2, 16)
    """
    hood = Neighborhood.of(
        3, kernel_size, dilation, stride, window_stride, is_causal, op="na3d_qkvpacked"
    )
    return attend_packed(hood, qkv, num_heads, scale=scale, rpb=rpb, return_lse=return_lse)


def _in_a_row(qkv: mx.array, rank: int) -> mx.array:
    """`[batch, *spatial, heads + 2 * kv_heads, head_dim]`."""
    return qkv if qkv.ndim == rank + 3 else qkv.flatten(-3, -2)


def _checked_heads(op: str, rank: int, qkv: Any, num_heads: Any) -> int:
    """How many heads queries have."""
    check_floats(op, qkv=qkv)
    if num_heads is None and qkv.ndim == rank + 4 and qkv.shape[-3] == 3:
        return int(qkv.shape[-2])
    if num_heads is None or qkv.ndim != rank + 3:
        axes = ("length",) if rank == 1 else ("depth", "height", "width")[3 - rank :]
        layout = ", ".join(["batch", *axes])
        raise ValueError(
            f"[{op}] 'qkv' must be [{layout}, 3, heads, head_dim], or with 'num_heads' [{layout}, "
            f"num_heads + 2 * kv_heads, head_dim], but got {qkv.shape} and {num_heads}."
        )
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"[{op}] 'num_heads' must be an integer but got {num_heads!r}.")
    rest = qkv.shape[-2] - num_heads
    if num_heads < 1 or rest < 2 or rest % 2:
        raise ValueError(
            f"[{op}] 'qkv' must have 'num_heads' heads and two for each of the keys' but got "
            f"{qkv.shape} with {num_heads}."
        )
    check_heads(op, num_heads, rest // 2)
    return num_heads

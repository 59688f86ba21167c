"""Neighborhood attention in two halves, with the attention weights in the open.

`softmax(na2d_qk(query, key, ...), axis=-1)` and [`na2d_av`][] are `na2d`, with room for
dropout or a look between them. The weights take `kernel volume` numbers per query and head.
[`attend_qk`][] and [`attend_av`][] take a `Neighborhood` of any rank; all others make
one of their arguments.
"""

from __future__ import annotations

import mlx.core as mx

from . import autograd, backend, known
from .neighborhood import BoolOrBools, IntOrInts, Neighborhood
from .problem import (
    Problem,
    attention_problem,
    check_floats,
    check_heads,
    check_neighborhood,
    check_not_empty,
    downsample,
)


def attend_qk(
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    *,
    scale: float | None = None,
    rpb: mx.array | None = None,
    op: str | None = None,
) -> mx.array:
    """The logits of a neighborhood of any rank: what [`na1d_qk`][] and its siblings call.

    Args:
        hood: Who sees whom; its rank is that of the arrays.
        query: `[batch, *spatial, heads, head_dim]`.
        key: `[batch, *spatial, kv_heads, head_dim]`.
        scale: As in [`na2d_qk`][natten_zoo.ops.na2d_qk].
        rpb: `[heads, *hood.bias_shape]`.
        op: Who asks, for messages. Default: `na{rank}d_qk`.

    Returns:
        `[batch, *spatial', heads, hood.volume]`, as [`na2d_qk`][natten_zoo.ops.na2d_qk].

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.
    """
    call = known.kind("attend_qk", op, hood, scale, query, key, rpb)
    rest = known.rest(call)
    if rest is None:
        check_neighborhood("attend_qk", hood)
        op = op or f"na{hood.rank}d_qk"
        check_floats(op, query=query, key=key)
        problem = attention_problem(op, hood, query, key, key, scale, rpb)
        run = autograd.qk(problem, backend.choose(problem, op))
        rest = known.keep(call, lambda q, k, b: run((downsample(problem, q), k), b, None)[0])
    logits: mx.array = rest(query, key, rpb)
    return logits


def attend_av(
    hood: Neighborhood, attn: mx.array, value: mx.array, *, op: str | None = None
) -> mx.array:
    """The weighted values of a neighborhood of any rank: what [`na1d_av`][] and siblings call.

    Args:
        hood: Who sees whom; its rank is that of the arrays.
        attn: `[batch, *spatial', heads, hood.volume]`, as [`attend_qk`][] gives.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        op: Who asks, for messages. Default: `na{rank}d_av`.

    Returns:
        `[batch, *spatial', heads, value_dim]`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.
    """
    call = known.kind("attend_av", op, hood, None, attn, value)
    rest = known.rest(call)
    if rest is None:
        check_neighborhood("attend_av", hood)
        op = op or f"na{hood.rank}d_av"
        problem = _av_problem(op, hood, attn, value)
        run = autograd.av(problem, backend.choose(problem, op))
        rest = known.keep(call, lambda attn, value: run((attn, value), None, None)[0])
    out: mx.array = rest(attn, value)
    return out


def na2d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
) -> mx.array:
    r"""The logits of 2-D neighborhood attention, one per query and key of its window.

    $$l_{i, t} = s \, q_i \cdot k_j + b_{(j - i) / d}, \qquad j = \rho_t(i)$$

    with $\rho_t(i)$ the key in slot $t$ of the window of $i$. Slots are in
    row-major order over the axes; on each axis slot `t` holds the key `t * dilation` after the
    first of the window. Windows that a border cuts (causal axes only) have `-inf` in their last
    slots. Products are summed in float32.

    Args:
        query: `[batch, height, width, heads, head_dim]`; float32, float16 or bfloat16.
        key: `[batch, height, width, kv_heads, head_dim]`; `kv_heads` divides `heads`.
        kernel_size: Keys per query and axis, an integer or one per axis.
        dilation: Step between the keys of a window. It comes next, as in natten-mlx, where
            `na2d` has `stride`: `na2d_qk(q, k, 7, 2)` is a dilation of 2, and
            `na2d(q, k, v, 7, 2)` a stride of 2.
        stride: Keeps every `stride`-th query, as in [`na2d`][natten_zoo.ops.na2d].
        is_causal: Whether a query sees only keys up to itself, for all axes or one per axis.
        scale: Factor of the products. Default: `head_dim ** -0.5`.
        rpb: Relative position bias `[heads, 2 * kernel_size - 1 per axis]`, added after scaling.
        window_stride: Queries that share the window of their leader, as in `na2d`.

    Returns:
        `[batch, height', width', heads, prod(kernel_size)]` in the dtype of `query`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 14, 14, 2, 32))
        >>> weights = mx.softmax(ops.na2d_qk(x, x, kernel_size=7), axis=-1)
        >>> weights.shape
        (1, 14, 14, 2, 49)
        >>> mx.allclose(ops.na2d_av(weights, x, 7), ops.na2d(x, x, x, 7), atol=1e-5).item()
        True
    """
    hood = Neighborhood.of(2, kernel_size, dilation, stride, window_stride, is_causal, op="na2d_qk")
    return attend_qk(hood, query, key, scale=scale, rpb=rpb)


def na1d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
) -> mx.array:
    """1-D [`na2d_qk`][]: `[batch, length, heads, head_dim]` to
    `[batch, length', heads, kernel_size]`.
    """
    hood = Neighborhood.of(1, kernel_size, dilation, stride, window_stride, is_causal, op="na1d_qk")
    return attend_qk(hood, query, key, scale=scale, rpb=rpb)


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    scale: float | None = None,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
) -> mx.array:
    """3-D [`na2d_qk`][]: `[batch, depth, height, width, heads, head_dim]` to
    `[batch, depth', height', width', heads, prod(kernel_size)]`.
    """
    hood = Neighborhood.of(3, kernel_size, dilation, stride, window_stride, is_causal, op="na3d_qk")
    return attend_qk(hood, query, key, scale=scale, rpb=rpb)


def na2d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    window_stride: IntOrInts = 1,
) -> mx.array:
    r"""The values of each query's 2-D window, summed with the given weights.

    $$o_i = \sum_t a_{i, t} \, v_{\rho_t(i)}$$

    Takes the slots of [`na2d_qk`][], which must have had the same parameters. Slots without a
    key are ignored, whatever they hold.

    Args:
        attn: `[batch, height', width', heads, prod(kernel_size)]`; any weights.
        value: `[batch, height, width, kv_heads, value_dim]`, in the dtype of `attn`.
        kernel_size: As in [`na2d_qk`][].
        dilation: As in [`na2d_qk`][].
        stride: As in [`na2d_qk`][]: `height'` is `ceil(height / stride)`.
        is_causal: As in [`na2d_qk`][].
        window_stride: As in [`na2d_qk`][].

    Returns:
        `[batch, height', width', heads, value_dim]`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.
    """
    hood = Neighborhood.of(2, kernel_size, dilation, stride, window_stride, is_causal, op="na2d_av")
    return attend_av(hood, attn, value)


def na1d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    window_stride: IntOrInts = 1,
) -> mx.array:
    """1-D [`na2d_av`][]: `[batch, length', heads, kernel_size]` to
    `[batch, length', heads, value_dim]`.
    """
    hood = Neighborhood.of(1, kernel_size, dilation, stride, window_stride, is_causal, op="na1d_av")
    return attend_av(hood, attn, value)


def na3d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    window_stride: IntOrInts = 1,
) -> mx.array:
    """3-D [`na2d_av`][]: `[batch, depth', height', width', heads, prod(kernel_size)]` to
    `[batch, depth', height', width', heads, value_dim]`.
    """
    hood = Neighborhood.of(3, kernel_size, dilation, stride, window_stride, is_causal, op="na3d_av")
    return attend_av(hood, attn, value)


def _av_problem(op: str, hood: Neighborhood, attn: mx.array, value: mx.array) -> Problem:
    check_floats(op, attn=attn, value=value)
    for name, x in (("attn", attn), ("value", value)):
        if x.ndim != hood.rank + 3:
            raise ValueError(f"[{op}] '{name}' must have {hood.rank + 3} axes but got {x.shape}.")
        check_not_empty(op, name, x)
    batch, *spatial, kv_heads, value_dim = value.shape
    hood = hood.on(spatial, op)
    hood.check_size(spatial, op)
    heads = attn.shape[-2]
    expected = (batch, *hood.output_size(spatial), heads, hood.volume)
    if attn.shape != expected:
        raise ValueError(
            f"[{op}] 'attn' must have shape {expected} to go with 'value' {value.shape} and "
            f"kernel_size {hood.kernel_size} but got {attn.shape}."
        )
    check_heads(op, heads, kv_heads)
    return Problem(
        neighborhood=hood,
        batch=batch,
        spatial=tuple(spatial),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=value_dim,
        value_dim=value_dim,
        scale=1.0,
        dtype=value.dtype,
    )

"""Neighborhood attention over padded batches whose samples have sizes of their own.

[`attend_varlen`][] takes a `Neighborhood` of any rank; the others make one of their
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from . import autograd, backend, known
from .neighborhood import BoolOrBools, IntOrInts, Neighborhood
from .problem import Problem, attention_problem, check_neighborhood, downsample

Rest = Callable[..., tuple[mx.array, mx.array]]  # as in functional.py
Result = mx.array | tuple[mx.array, mx.array]
Sizes = mx.array | np.ndarray | Sequence[int] | Sequence[Sequence[int]]


def attend_varlen(
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    sizes: Sizes,
    *,
    scale: float | None = None,
    rpb: mx.array | None = None,
    op: str | None = None,
    return_lse: bool = True,
) -> Result:
    """A padded batch of any rank: what [`na1d_varlen`][] and its siblings call.

    Args:
        hood: Who sees whom; its rank is that of the arrays.
        query: `[batch, *spatial, heads, head_dim]`, padded.
        key: `[batch, *spatial, kv_heads, head_dim]`.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        sizes: Integers `[batch, rank]`, for one axis also `[batch]`; see [`na2d_varlen`][].
        scale: As in [`na2d`][natten_zoo.ops.na2d].
        rpb: `[heads, *hood.bias_shape]`.
        op: Who asks, for messages. Default: `na{rank}d_varlen`.
        return_lse: Whether to return the LSE, too: a GPU computes it only then.

    Returns:
        The output and, with `return_lse`, the LSE, as `na2d_varlen`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or known sizes exceed the padded ones.
    """
    call = known.kind("attend_varlen", (op, return_lse), hood, scale, query, key, value, rpb)
    rest: Rest | None = known.rest(call)
    if rest is None:
        check_neighborhood("attend_varlen", hood)
        op = op or f"na{hood.rank}d_varlen"
        problem = attention_problem(
            op, hood, query, key, value, scale, rpb, has_lengths=True, has_lse=return_lse
        )
        rest = known.keep(call, _rest(op, problem))
    out, lse = rest(query, key, value, rpb, sizes)
    return (out, lse) if return_lse else out


def _rest(op: str, problem: Problem) -> Rest:
    """What is left to do with the arrays of a problem, once it is chosen who computes it."""
    run = autograd.attention(problem, backend.choose(problem, op))

    def rest(
        query: mx.array, key: mx.array, value: mx.array, rpb: mx.array | None, sizes: Sizes
    ) -> tuple[mx.array, mx.array]:
        lengths = checked_lengths(op, sizes, problem)
        out, lse, *_ = run((downsample(problem, query), key, value), rpb, lengths)
        return out, lse

    return rest


def na2d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    spatial_sizes: Sizes,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    scale: float | None = None,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """`na2d` where sample `b` is only the corner `spatial_sizes[b]` of its array.

    The windows of a sample are those of an array of its size: its borders move them, and what lies
    outside is never seen, whatever it holds. Nothing is evaluated, so sizes may come out of a
    computation, and a compiled function serves all of them.

    Args:
        query: `[batch, height, width, heads, head_dim]`, padded.
        key: `[batch, height, width, kv_heads, head_dim]`.
        value: `[batch, height, width, kv_heads, value_dim]`.
        spatial_sizes: Integers `[batch, 2]`. On axes where a sample is smaller than `kernel_size
            * dilation` its queries see the whole dilation group. Those of an `mx.array`, whose
            numbers are not known yet, are clipped to the padded size; others are checked.
        kernel_size: Keys per query and axis, an integer or one per axis.
        dilation: Step between the keys of a window. It comes next, as in natten-mlx, where
            [`na2d`][natten_zoo.ops.na2d] has `stride`.
        scale: Factor of the logits. Default: `head_dim ** -0.5`.
        stride: Keeps every `stride`-th query, as in [`na2d`][natten_zoo.ops.na2d].
        is_causal: Whether a query sees only keys up to itself, for all axes or one per axis.
        rpb: Relative position bias `[heads, 2 * kernel_size - 1 per axis]`.
        window_stride: Queries that share the window of their leader, as in `na2d`.
        return_lse: Whether to return the logarithm of the sum of exponentials, too.

    Returns:
        `[batch, height', width', heads, value_dim]` as `na2d`, zero outside of the samples;
        with `return_lse` a pair with the LSE, `-inf` outside.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or known sizes exceed the padded ones.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((2, 12, 10, 2, 16))
        >>> out = ops.na2d_varlen(x, x, x, [(12, 10), (7, 9)], kernel_size=5)
        >>> part = x[1:, :7, :9]
        >>> mx.allclose(out[1:, :7, :9], ops.na2d(part, part, part, 5), atol=1e-5).item()
        True
    """
    hood = Neighborhood.of(
        2, kernel_size, dilation, stride, window_stride, is_causal, op="na2d_varlen"
    )
    arrays = query, key, value, spatial_sizes
    return attend_varlen(hood, *arrays, scale=scale, rpb=rpb, return_lse=return_lse)


def na1d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    seq_lens: Sizes,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    scale: float | None = None,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """1-D [`na2d_varlen`][]: arrays `[batch, length, heads, head_dim]`, lengths `[batch]`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((2, 12, 2, 16))
        >>> ops.na1d_varlen(x, x, x, mx.array([12, 7]), kernel_size=5, is_causal=True).shape
        (2, 12, 2, 16)
    """
    hood = Neighborhood.of(
        1, kernel_size, dilation, stride, window_stride, is_causal, op="na1d_varlen"
    )
    arrays = query, key, value, seq_lens
    return attend_varlen(hood, *arrays, scale=scale, rpb=rpb, return_lse=return_lse)


def na3d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    spatial_sizes: Sizes,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    scale: float | None = None,
    *,
    stride: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    window_stride: IntOrInts = 1,
    return_lse: bool = False,
) -> Result:
    """3-D [`na2d_varlen`][]: arrays `[batch, depth, height, width, heads, head_dim]`, sizes
    `[batch, 3]`.
    """
    hood = Neighborhood.of(
        3, kernel_size, dilation, stride, window_stride, is_causal, op="na3d_varlen"
    )
    arrays = query, key, value, spatial_sizes
    return attend_varlen(hood, *arrays, scale=scale, rpb=rpb, return_lse=return_lse)


def checked_lengths(op: str, sizes: Sizes, problem: Problem) -> mx.array:
    """int32 `[batch, rank]` within the padded size."""
    batch, spatial = problem.batch, problem.spatial
    name = "seq_lens" if len(spatial) == 1 else "spatial_sizes"
    expected = [batch] if len(spatial) == 1 else [batch, len(spatial)]
    try:
        given = sizes if isinstance(sizes, mx.array) else np.asarray(sizes)
    except ValueError:  # rows of different lengths
        raise ValueError(f"[{op}] '{name}' must have shape {expected} but got {sizes}.") from None
    if batch == 0 and given.shape == (0,):  # no sizes in a list have no second axis
        given = given.reshape(0, len(spatial))
    kinds = mx if isinstance(given, mx.array) else np
    if given.size and not kinds.issubdtype(given.dtype, kinds.integer):
        raise TypeError(f"[{op}] '{name}' must be integers but got {given.dtype}.")
    if list(given.shape) not in (expected, [batch, len(spatial)]):
        raise ValueError(f"[{op}] '{name}' must have shape {expected} but got {list(given.shape)}.")
    if isinstance(given, mx.array):
        given = given.astype(mx.int32).reshape(batch, len(spatial))
        return mx.clip(given, 0, mx.array(spatial, mx.int32))
    given = given.astype(np.int64).reshape(batch, len(spatial))
    if (given < 1).any() or (given > np.array(spatial)).any():
        raise ValueError(
            f"[{op}] '{name}' must lie between 1 and the padded size {spatial} but got "
            f"{given.tolist()}."
        )
    return mx.array(given.astype(np.int32))

"""Neighborhood attention: validate a call, and hand its problem to a tier.

A *problem* is a call without its arrays: their shapes and all other arguments (`Problem`). A *tier*
is one of several implementations: in MLX's own operations, in compiled C++, in kernels for a GPU
(ops/tier.py). They compute the same; the first that can is taken, unless one is asked for.

[`attend`][] takes a `Neighborhood` of any rank, which is its number of axes. `na1d`,
`na2d` and `na3d` make one of their arguments and call it. Arrays are heads-last:
`[batch, length, heads, head_dim]`, `[batch, height, width, heads, head_dim]`,
`[batch, depth, height, width, heads, head_dim]`.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from . import autograd, backend, dense, known
from .additional import attend_also, check_additional
from .cross_resolution import bias_of_places
from .neighborhood import BoolOrBools, IntOrInts, Neighborhood
from .problem import Problem, attention_problem, check_neighborhood, downsample

OutAndLSE = tuple[mx.array, mx.array]
Result = mx.array | OutAndLSE
Rest = Callable[..., OutAndLSE]  # of a call's arrays; anything for an LSE that is not asked for


def attend(
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    *,
    scale: float | None = None,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    op: str | None = None,
    return_lse: bool = True,
) -> Result:
    """Neighborhood attention of any rank: what [`na1d`][], [`na2d`][] and [`na3d`][] call.

    For callers that keep a `Neighborhood`, such as layers: it was validated when it was
    made, and is not again.

    Args:
        hood: Who sees whom; its rank is that of the arrays.
        query: `[batch, *spatial, heads, head_dim]`, or finer: see [`na2d`][].
        key: `[batch, *spatial, kv_heads, head_dim]`.
        value: `[batch, *spatial, kv_heads, value_dim]`.
        scale: As in [`na2d`][natten_zoo.ops.na2d], and so is all that follows.
        rpb: `[heads, *hood.bias_shape]`.
        additional_keys: `[batch, tokens, kv_heads, head_dim]`.
        additional_values: `[batch, tokens, kv_heads, value_dim]`.
        op: Who asks, for messages. Default: `na{rank}d`.
        return_lse: Whether to return the LSE, too: a GPU computes it only then.

    Returns:
        The output and, with `return_lse`, the LSE, the logarithm of the sum of the exponentials of
        each query's logits, as [`na2d`][].

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> hood = ops.Neighborhood.of(2, kernel_size=7, dilation=2)
        >>> x = mx.random.normal((1, 14, 14, 2, 32))
        >>> out, lse = ops.attend(hood, x, x, x)
        >>> mx.array_equal(out, ops.na2d(x, x, x, 7, dilation=2)).item()
        True
    """
    more = additional_keys, additional_values
    call = known.kind("attend", (op, return_lse), hood, scale, query, key, value, rpb, *more)
    rest: Rest | None = known.rest(call)
    if rest is None:
        check_neighborhood("attend", hood)
        op = op or f"na{hood.rank}d"
        has_lse = return_lse or additional_keys is not None
        problem = attention_problem(
            op, hood, query, key, value, scale, rpb, may_be_finer=True, has_lse=has_lse
        )
        check_additional(op, problem, *more)
        rest = known.keep(call, _rest(op, problem, additional_keys is not None))
    out, lse = rest(query, key, value, rpb, *more)
    return (out, lse) if return_lse else out


def _rest(op: str, problem: Problem, has_additional: bool) -> Rest:
    """What is left to do with the arrays of a problem, once it is chosen who computes it.

    Where every window is the whole map this is plain attention, and where it nearly is, that with
    a mask. MLX has both, and its own is taken unless the tier is faster.
    """
    may_be_dense = not has_additional or problem.neighborhood.covers(problem.spatial)
    tier = backend.choose_attention(problem, op, may_be_dense)
    run = None if tier is None else autograd.attention(problem, tier)

    def rest(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        more_keys: mx.array | None,
        more_values: mx.array | None,
    ) -> OutAndLSE:
        query = downsample(problem, query)
        if run is None:
            return attend_densely(problem, query, key, value, more_keys, more_values)
        out, lse, *_ = run((query, key, value), bias_of_places(rpb, problem.finer), None)
        if more_keys is None or more_values is None:
            return out, lse
        return attend_also(query, more_keys, more_values, problem.scale, out, lse)

    return rest


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
    an infinity in a key or value may so reach queries beside those that see it. On each axis these
    are fewer than 64 tokens away in the pure tier and fewer than 16 in the others, times the
    dilation. One in a query stays there. Logits must be above -1e29, which is what a bias is taken
    for that is less.

    Args:
        query: `[batch, height, width, heads, head_dim]`; float32, float16 or bfloat16. Its height
            and width may be multiples of the key's, each by a factor of its own: a query then has
            the window of the cell of the keys' map that it lies in (`stride` has to be 1), as if
            keys and values were upsampled and dilated by the factors, which they need not be.
        key: `[batch, height, width, kv_heads, head_dim]`, where `kv_heads` divides `heads`:
            query head `h` uses key head `h // (heads // kv_heads)`.
        value: `[batch, height, width, kv_heads, value_dim]`.
        kernel_size: Keys per query and axis, an integer or one per axis; -1 for a whole axis.
        stride: Keeps the queries 0, s, 2s, ...: the output has `ceil(size / stride)` tokens. Not
            what NATTEN >= 0.20 calls stride: that is `window_stride`. Note the order, which is
            natten-mlx's: `na2d(q, k, v, 7, 2)` has a stride of 2, but `na2d_qk(q, k, 7, 2)`,
            `na2d_av` and `na2d_varlen` take the dilation next. Name what follows
            `kernel_size`, and you need not remember.
        dilation: Step between the keys of a window.
        is_causal: Whether a query sees only keys up to itself, for all axes or one per axis.
        scale: Factor of the logits, a finite number. Default: `head_dim ** -0.5`.
        rpb: Relative position bias `[heads, 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1]`,
            added after scaling at the index `(key - query) / dilation + kernel_size - 1`.
        additional_keys: `[batch, tokens, kv_heads, head_dim]`: keys that every query sees, too.
        additional_values: `[batch, tokens, kv_heads, value_dim]`.
        window_stride: Queries that share the window of their leader (generalized neighborhood
            attention, https://arxiv.org/abs/2504.16922); the output keeps its size.
        return_lse: Whether to return the logarithm of the sum of exponentials, too.

    Returns:
        `[batch, height', width', heads, value_dim]` in the dtype of `query`; with
        `return_lse` a pair with the LSE `[batch, height', width', heads]`, float32, natural
        logarithm, additional keys included.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not fit, or `kernel_size * dilation` exceeds an axis.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 14, 14, 2, 32))
        >>> ops.na2d(x, x, x, kernel_size=7, dilation=2).shape
        (1, 14, 14, 2, 32)
        >>> ops.na2d(x, x, x, kernel_size=(3, 5), stride=2, is_causal=(True, False)).shape
        (1, 7, 7, 2, 32)
    """
    hood = Neighborhood.of(2, kernel_size, dilation, stride, window_stride, is_causal, op="na2d")
    return attend(
        hood,
        query,
        key,
        value,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


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
    """1-D neighborhood attention: [`na2d`][] on `[batch, length, heads, head_dim]`.

    `rpb` is `[heads, 2 * kernel_size - 1]`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.random.normal((1, 100, 2, 32))
        >>> out, lse = ops.na1d(x, x, x, kernel_size=7, is_causal=True, return_lse=True)
        >>> out.shape, lse.shape
        ((1, 100, 2, 32), (1, 100, 2))
    """
    hood = Neighborhood.of(1, kernel_size, dilation, stride, window_stride, is_causal, op="na1d")
    return attend(
        hood,
        query,
        key,
        value,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


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

    Arrays are `[batch, depth, height, width, heads, head_dim]`; `rpb` has one entry per head
    and relative position, `[heads, 2 * kernel_size - 1 per axis]`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> clip = mx.random.normal((1, 8, 14, 14, 2, 16))
        >>> ops.na3d(clip, clip, clip, (3, 7, 7), is_causal=(True, False, False)).shape
        (1, 8, 14, 14, 2, 16)
    """
    hood = Neighborhood.of(3, kernel_size, dilation, stride, window_stride, is_causal, op="na3d")
    return attend(
        hood,
        query,
        key,
        value,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


def attend_densely(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
) -> OutAndLSE:
    """Self-attention, with the neighborhood as a mask where windows are not the whole input."""
    shape, hood = query.shape[:-1], problem.neighborhood
    query, key, value = (x.flatten(1, -3) for x in (query, key, value))  # [B, tokens, H, D]
    if additional_keys is not None and additional_values is not None:
        key = mx.concatenate([key, additional_keys], axis=1)
        value = mx.concatenate([value, additional_values], axis=1)
    covers = hood.covers(problem.spatial)
    mask = None if covers else dense.neighborhood_mask(hood, problem.spatial)
    out, lse = dense.attend_to(query, key, value, problem.scale, mask)
    return out.reshape(*shape, problem.value_dim), lse.reshape(shape)

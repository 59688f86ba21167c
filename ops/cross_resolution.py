"""Queries on a finer map than the keys: the window of a query is that of the cell it lies in.

A block of ``r x r`` queries shares one cell of the keys' map, and so one window: on that map the
block's queries are heads that share the keys of their own head, grouped-query attention with
``r * r`` times as many query heads. Every tier does that. Nothing is upsampled: keys and values
stay as small as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from .neighborhood import Neighborhood
from .problem import check_floats, check_heads, check_token_arrays

# query=, key=, value= and rpb=, at the keys' resolution, to the output and the LSE there.
Attend = Callable[..., tuple[mx.array, mx.array]]


def differs(query: mx.array, key: mx.array) -> bool:
    """Whether two arrays with the same axes have other numbers of tokens on them."""
    fine, coarse = getattr(query, "shape", ()), getattr(key, "shape", ())
    if fine == coarse or fine[1:-2] == coarse[1:-2] or len(fine) != len(coarse):
        return False
    return isinstance(query, mx.array) and isinstance(key, mx.array) and 0 not in fine + coarse


def attend_finer(
    op: str,
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    attend: Attend,
) -> tuple[mx.array, mx.array]:
    """Attention of queries that `differs` tells from their keys, by way of ``attend``.

    Raises:
        ValueError: If the queries' axes are no multiples of the keys', or queries are left out.
    """
    check_floats(op, query=query, key=key, value=value)
    check_token_arrays(op, hood.rank, key=key, value=value)
    fine, coarse = query.shape[1:-2], key.shape[1:-2]
    if any(n % m for n, m in zip(fine, coarse, strict=True)):
        raise ValueError(
            f"[{op}] 'query' must have as many tokens as 'key' on every axis, or a whole number of "
            f"times as many, but got {fine} and {coarse}."
        )
    if max(hood.stride) > 1:
        raise ValueError(
            f"[{op}] 'stride' must be 1 where 'query' is finer than 'key' but got {hood.stride}."
        )
    check_heads(op, query.shape[-2], key.shape[-2])
    times = [n // m for n, m in zip(fine, coarse, strict=True)]
    shared = rpb if rpb is None else mx.repeat(rpb, math.prod(times), axis=0)
    out, lse = attend(query=fold(query, times), key=key, value=value, rpb=shared)
    return unfold(out, times), unfold(lse, times)


def fold(x: mx.array, times: Sequence[int]) -> mx.array:
    """Queries of a cell as heads: ``[B, *(S * r), H, D]`` to ``[B, *S, H * prod(r), D]``.

    Examples:
        >>> import mlx.core as mx
        >>> fold(mx.arange(6).reshape(1, 6, 1, 1), [2])[..., 0].tolist()
        [[[0, 1], [2, 3], [4, 5]]]
    """
    batch, *fine, heads, dim = x.shape
    rank = len(times)
    pairs = [n for size, r in zip(fine, times, strict=True) for n in (size // r, r)]
    x = x.reshape(batch, *pairs, heads, dim)
    cells, inside = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return x.transpose(0, *cells, 2 * rank + 1, *inside, 2 * rank + 2).flatten(rank + 1, -2)


def unfold(x: mx.array, times: Sequence[int]) -> mx.array:
    """What `fold` did, undone: ``[B, *S, H * prod(r), ...]`` to ``[B, *(S * r), H, ...]``."""
    rank = len(times)
    batch, *cells, folded = x.shape[: rank + 2]
    rest, heads = x.shape[rank + 2 :], folded // math.prod(times)
    x = x.reshape(batch, *cells, heads, *times, *rest)
    axes = [a for axis in range(rank) for a in (1 + axis, rank + 2 + axis)]
    x = x.transpose(0, *axes, rank + 1, *range(2 * rank + 2, x.ndim))
    return x.reshape(batch, *(n * r for n, r in zip(cells, times, strict=True)), heads, *rest)

"""Queries on a finer map than the keys: the window of a query is that of the cell it lies in.

A block of `r x r` queries shares one cell of the keys' map, and so one window: on that map the
block's queries are heads that share the keys of their own head, grouped-query attention with
`r * r` times as many query heads. That is what a `Problem` with `finer` says. Its arrays of
queries stay as they are: every tier finds their rows on the fine map, and nothing is copied to the
coarse one, or upsampled from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from .neighborhood import Neighborhood


def times_finer(
    op: str, hood: Neighborhood, query: Sequence[int], key: Sequence[int]
) -> tuple[int, ...]:
    """How many times finer queries of a shape are on each axis; empty where they are not at all.

    Raises:
        ValueError: If their axes are no multiples of the keys', or queries are left out.
    """
    fine, coarse = tuple(query[1:-2]), tuple(key[1:-2])
    if fine == coarse or len(query) != len(key) or 0 in (*query[1:], *key[1:]):
        return ()
    if len(key) != hood.rank + 3 or query[0] != key[0]:
        return ()
    if any(n % m for n, m in zip(fine, coarse, strict=True)):
        raise ValueError(
            f"[{op}] 'query' must have as many tokens as 'key' on every axis, or a whole number of "
            f"times as many, but got {fine} and {coarse}."
        )
    if max(hood.stride) > 1:
        raise ValueError(
            f"[{op}] 'stride' must be 1 where 'query' is finer than 'key' but got {hood.stride}."
        )
    return tuple(n // m for n, m in zip(fine, coarse, strict=True))


def bias_of_places(rpb: mx.array | None, finer: Sequence[int]) -> mx.array | None:
    """The bias of a problem's heads: that of each head of the queries, once for each place."""
    return rpb if rpb is None or not finer else mx.repeat(rpb, math.prod(finer), axis=0)

"""Arrays of finer queries beside those of their problem on the keys' map: what no tier does.

Works on arrays of MLX and of NumPy. Imports neither pytest nor the emulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from natten_zoo.ops.problem import Problem
from tests.reference import Reference

Array = TypeVar("Array")


def fold(x: Array, times: Sequence[int]) -> Array:
    """Queries of a cell as heads: `[B, *(S * r), H, ...]` to `[B, *S, H * prod(r), ...]`."""
    rank = len(times)
    batch, *fine, heads = x.shape[: rank + 2]
    rest = x.shape[rank + 2 :]
    cells = [n // r for n, r in zip(fine, times, strict=True)]
    pairs = [n for pair in zip(cells, times, strict=True) for n in pair]
    x = x.reshape(batch, *pairs, heads, *rest)
    axes = (*range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2))
    x = x.transpose(0, *axes, *range(2 * rank + 2, x.ndim))
    return x.reshape(batch, *cells, heads * math.prod(times), *rest)


def unfold(x: Array, times: Sequence[int]) -> Array:
    """What `fold` did, undone."""
    rank = len(times)
    batch, *cells, heads = x.shape[: rank + 2]
    rest, heads = x.shape[rank + 2 :], heads // math.prod(times)
    x = x.reshape(batch, *cells, heads, *times, *rest)
    axes = [axis for a in range(rank) for axis in (1 + a, rank + 2 + a)]
    x = x.transpose(0, *axes, rank + 1, *range(2 * rank + 2, x.ndim))
    return x.reshape(batch, *(n * r for n, r in zip(cells, times, strict=True)), heads, *rest)


def at_keys(problem: Problem) -> Problem:
    """The same problem, its arrays of queries on the keys' map."""
    return replace(problem, finer=())


class FinerReference:
    """A reference on the keys' map, for arrays of finer queries."""

    def __init__(self, reference: Reference, times: Sequence[int]) -> None:
        self.reference, self.times = reference, times

    def forward(self, query: np.ndarray, *rest: np.ndarray | None) -> list[np.ndarray]:
        """`(out, lse)`."""
        found = self.reference.forward(fold(query, self.times), *rest)
        return [unfold(x, self.times) for x in found]

    def backward(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        rpb: np.ndarray | None,
        *cotangents: np.ndarray,
    ) -> list[np.ndarray | None]:
        """`(d_query, d_key, d_value, d_rpb)`."""
        query, *cotangents = (fold(x, self.times) for x in (query, *cotangents))
        d_query, *others = self.reference.backward(query, key, value, rpb, *cotangents)
        return [unfold(d_query, self.times), *others]

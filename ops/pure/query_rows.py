"""Where the queries of a problem lie in flat arrays `[*queries, D]`, on a finer map, too."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from ..problem import Problem
from .tiling import index


class QueryRows:
    """Rows of queries: by a head of the problem and a place on the map of its outputs."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        _, *self.tokens, self.heads = problem.queries
        self.finer = problem.finer or (1,) * problem.rank

    def starts(self, head: np.ndarray) -> np.ndarray:
        """The first row of heads, counted through all samples."""
        sample, head = np.divmod(head, self.problem.heads)
        head, place = np.divmod(head, math.prod(self.finer))
        inside = np.ravel_multi_index(np.unravel_index(place, self.finer), self.tokens)
        start: np.ndarray = (sample * math.prod(self.tokens) + inside) * self.heads + head
        return start

    def tokens_at(self, place: mx.array) -> mx.array:
        """Flat tokens at flat places: of a cell the first one."""
        if not self.problem.finer:
            return place
        corners = (np.arange(n) * r for n, r in zip(self.problem.out, self.finer, strict=True))
        return index(np.ravel_multi_index(np.ix_(*corners), self.tokens).ravel()[np.array(place)])

    def in_order(self, home: mx.array | None, sharing: int) -> mx.array | None:
        """Where each row of the query heads that share a key's is computed, row by row.

        Args:
            home: `[sharing, places]`, where they are; None if they are in that order.
            sharing: Heads of the problem that share one of its keys'.

        Returns:
            The same, or `[heads of the arrays that share it, tokens]`.
        """
        if not self.problem.finer:
            return home
        rank, out = self.problem.rank, self.problem.out
        table = np.arange(sharing * math.prod(out)) if home is None else np.array(home)
        table = table.reshape(-1, *self.finer, *out)
        pairs = [axis for a in range(rank) for axis in (1 + rank + a, 1 + a)]
        return index(table.transpose(0, *pairs).reshape(table.shape[0], -1))

"""Moving arrays between tokens and tiles, a bounded part at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ..problem import Problem
from .bias import bias_gradient, bias_variants, variant_sums
from .query_rows import QueryRows
from .schedule import Part, PartResults, Schedule, Turns, blocks
from .tiling import MASKED, Tiling, combine, index, tiling


class Tiles:
    """The tiles of a problem.

    Scores of tiles are `[heads, tiles, tk, rows]`, keys first: the sums over keys then run over
    whole rows, and no product needs both its factors transposed. Heads are those of keys, counted
    through all samples; a row is a query of one of the query heads that share one. In shapes below
    `h` and `t` are the heads and tiles of a part, `BH` and `T` all of them.
    """

    def __init__(self, problem: Problem, rpb: mx.array | None, lengths: mx.array | None) -> None:
        self.problem, self.lengths = problem, lengths
        self.tiling: Tiling = tiling(problem)
        self.heads = problem.batch * problem.kv_heads
        self.rows = self.tiling.rows
        self._by_query = QueryRows(problem)
        self._query = self._by_query.tokens_at(self.tiling.query)
        self._bias = bias_variants(self.tiling, rpb)

    # Parts

    def map(self, function: Callable[[Part], PartResults]) -> PartResults:
        """Calls `function` part by part and puts its results together.

        It returns three lists: arrays per query `[h, t, rows, D]` that come back as
        `[B, *out, H, D]`, arrays per key `[h, t, tk, D]` that come back summed over the tiles
        as `[B, *spatial, Hkv, D]`, and gradients of the scores that come back as those of rpb.
        """
        schedule = Schedule.of(self.heads, self.tiling.tiles, self.tiling.keys * self.rows)
        tiles = list(blocks(self.tiling.tiles, schedule.tiles))
        turns = Turns(schedule.streams)
        done = [
            self._heads(function, heads, tiles, turns)
            for heads in blocks(self.heads, schedule.heads)
        ]
        queries, keys, bias = (_join(kind, 0) for kind in zip(*done, strict=True))
        return (
            [self._queries_back(x) for x in queries],
            [self._keys_back(x) for x in keys],
            [bias_gradient(self.tiling, tiles, x, self.problem.batch) for x in bias],
        )

    def _heads(
        self,
        function: Callable[[Part], PartResults],
        heads: slice,
        tiles: Sequence[slice],
        turns: Turns,
    ) -> PartResults:
        """All parts of some heads: `[h, T, rows, D]`, `[h, tokens, D]`, sums by variant."""
        parts: list[PartResults] = []
        runs: dict[int, mx.array] = {}
        for some in tiles:
            with turns.advance():
                queries, keys, scores = function(Part(heads, some, turns.token, runs))
                bias = [variant_sums(self.tiling, some, x) for x in scores]
                parts.append((queries, keys, bias))
                turns.done(parts[-1])
        parts.append(([], [mx.zeros((x.shape[0], 1, *x.shape[2:])) for x in keys], []))
        queries, keys, bias = (_join(kind, 1) for kind in zip(*parts, strict=True))
        results = queries, [self._fold(x) for x in keys], bias
        turns.done(results)
        return results

    # Queries

    def queries(self, part: Part, x: mx.array) -> mx.array:
        """`[h, t, rows, D]` from a `flat` `[*queries, D]`."""
        sharing = self.tiling.sharing
        heads = np.arange(part.heads.start * sharing, part.heads.stop * sharing)
        start = index(self._by_query.starts(heads.reshape(-1, 1, sharing, 1)))
        token = (part.order_token + self._query[part.tiles])[:, None, :]  # [t, 1, tq]
        return mx.take(x, (start + token * self._by_query.heads).flatten(2), axis=0)

    def _queries_back(self, x: mx.array) -> mx.array:
        """`[BH, T, rows, D] -> [*queries, D]`."""
        p, t = self.problem, self.tiling
        home = self._by_query.in_order(t.query_home, t.sharing)
        if home is not None:
            place = mx.arange(self.heads)[:, None, None] * (t.tiles * self.rows) + home
            x = mx.take(x.reshape(-1, x.shape[-1]), place, axis=0)
        batch, *tokens, heads = p.queries
        return x.reshape(batch, heads, *tokens, -1).moveaxis(1, -2)

    # Keys

    def keys(self, part: Part, x: mx.array) -> mx.array:
        """`[h, t, tk, D]` from a `flat` `[B, *spatial, Hkv, D]`."""
        if id(x) not in part.runs:
            part.runs[id(x)] = self._runs(part, x)
        runs = part.runs[id(x)]
        heads = part.heads.stop - part.heads.start
        if self.tiling.tile_runs is None:
            tiles = runs.reshape(heads, self.tiling.tiles, self.tiling.keys, -1)
            return tiles[:, part.tiles]
        start = index(np.arange(heads)[:, None, None] * (runs.shape[0] // heads))
        place = start + part.order_token + self.tiling.tile_runs[part.tiles]
        return mx.take(runs, place, axis=0).reshape(*place.shape[:2], self.tiling.keys, -1)

    def _runs(self, part: Part, x: mx.array) -> mx.array:
        """`[h * runs, run * D]`: the runs of keys that all tiles of some heads are made of."""
        p = self.problem
        heads = np.arange(part.heads.start, part.heads.stop)[:, None, None]
        sample, head = np.divmod(heads, p.kv_heads)
        start = index(sample * (math.prod(p.spatial) * p.kv_heads) + head)
        place = start + (part.order_token + self.tiling.run_tokens) * p.kv_heads
        return mx.take(x, place, axis=0).reshape(-1, self.tiling.run * x.shape[-1])

    def _fold(self, x: mx.array) -> mx.array:
        """`[h, T + 1, tk, D] -> [h, tokens, D]`: sums what the tiles have of each token.

        The last tile has zeros.
        """
        heads, _, width, dim = x.shape
        for axis, table in zip(self.tiling.axes, self.tiling.folds, strict=True):
            width //= axis.key.shape[1]
            x = x.reshape(-1, width * dim)
            start = mx.arange(heads)[:, None] * (x.shape[0] // heads)
            x = functools.reduce(mx.add, (mx.take(x, start + row, axis=0) for row in table))
        return x

    def _keys_back(self, x: mx.array) -> mx.array:
        """`[BH, tokens, D] -> [B, *spatial, Hkv, D]`."""
        p = self.problem
        return x.reshape(p.batch, p.kv_heads, *p.spatial, -1).moveaxis(1, -2)

    # Bias and mask

    def bias(self, part: Part) -> mx.array:
        """`[h or 1, t, tk, rows]`: what to add to scores, `MASKED` where not seen."""
        table, variant = self._bias, index(self.tiling.variant[part.tiles])
        kv_heads, variants, *shape = table.shape
        if kv_heads > 1:
            head = np.arange(self.heads)[part.heads, None]
            variant = variant + index(head % kv_heads * variants)
        bias = mx.take(table.flatten(0, 1), variant.reshape(-1), axis=0)
        bias = bias.reshape(-1, part.tiles.stop - part.tiles.start, *shape)
        if self.lengths is None:
            return bias
        return bias + mx.where(self._slots(part) < 0, MASKED, 0.0)

    # Slots

    def to_slots(self, part: Part, x: mx.array, absent: float) -> mx.array:
        """`[h, t, tk, rows] -> [h, t, rows, prod K]`, `absent` in slots without a key."""
        sizes = [a.key.shape[1] for a in self.tiling.axes]
        return self._rearrange(x, self._per_axis(part, "position", sizes), absent).mT

    def from_slots(self, part: Part, x: mx.array) -> mx.array:
        """`[h, t, rows, prod K] -> [h, t, tk, rows]`, zero for keys that are not seen."""
        return self._rearrange(x.mT, self._slots(part), 0.0)

    def _rearrange(self, x: mx.array, place: mx.array, absent: float) -> mx.array:
        """Takes `place` of each row of `x`, both keys or slots first; -1 is `absent`."""
        place = mx.broadcast_to(place, (x.shape[0], *place.shape[1:]))
        found = mx.take_along_axis(x, mx.maximum(place, 0), axis=-2)
        return mx.where(place < 0, absent, found)

    def _slots(self, part: Part) -> mx.array:
        """`[h or 1, t, tk, rows]`: the slot of a key in a query's window, -1 if not seen."""
        return self._per_axis(part, "slot", self.problem.neighborhood.kernel_size)

    def _per_axis(self, part: Part, table: str, sizes: Sequence[int]) -> mx.array:
        """An index table of `AxisTiles` for all axes together."""
        parts = []
        for a, (axis, place) in enumerate(zip(self.tiling.axes, self.tiling.places, strict=True)):
            if self.lengths is None:
                whole = mx.array(getattr(axis, table)(axis.length).astype(np.int32))[None]
            else:
                whole = getattr(axis, table)(self.lengths[:, a, None, None], mx)
                sample = np.arange(self.heads)[part.heads] // self.problem.kv_heads
                whole = mx.take(whole, index(sample), axis=0)
            parts.append(mx.take(whole, index(place[part.tiles]), axis=1))
        return mx.tile(combine(parts, sizes, 2, mx), (1, 1, 1, self.tiling.sharing))


def flat(x: mx.array) -> mx.array:
    """`[..., D] -> [rows, D]` in float32."""
    return x.reshape(-1, x.shape[-1]).astype(mx.float32)


def _join(parts: Sequence[list[mx.array]], axis: int) -> list[mx.array]:
    """The first arrays of all parts in one, the second ones, and so on."""
    some = [part for part in parts if part]
    if len(some) == 1:
        return some[0]
    return [mx.concatenate(list(xs), axis=axis) for xs in zip(*some, strict=True)]

"""Moving arrays between tokens and tiles, a bounded part at a time."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..problem import Problem
from .tiling import MASKED, Tiling, blocks, combine, homes, index, tiling

# Scores that are held at once: on a CPU they should stay in its cache.
CPU_SCORES, GPU_SCORES = 1 << 18, 1 << 24
# A CPU stream of MLX is one thread: parts take turns on this many, if they are worth a thread.
LANES, LEAST_SCORES = min(4, os.cpu_count() or 1), 3 << 13

# Arrays per query, arrays per key, gradients of scores.
PartResults = tuple[list[mx.array], list[mx.array], list[mx.array]]


@dataclass(frozen=True)
class Part:
    """Some heads and some tiles. A group is one key/value head of one sample."""

    groups: slice
    tiles: slice
    after: mx.array  # a zero, computed after the part before: one part is held at a time
    columns: dict[int, mx.array]  # of arrays per key, shared by the parts of the same groups


class Tiles:
    """The tiles of a problem.

    Scores of tiles are ``[groups, tiles, tk, rows]``, keys first: the sums over keys then run over
    whole rows, and no product needs both its factors transposed. A row is a query of one of the
    heads that share a key head.
    """

    def __init__(self, problem: Problem, rpb: mx.array | None, lengths: mx.array | None) -> None:
        self.problem, self.lengths = problem, lengths
        self.tiling: Tiling = tiling(problem)
        self.groups = problem.batch * problem.kv_heads
        self.rows = self.tiling.rows
        self._bias = self._bias_variants(rpb)

    # Parts

    def map(self, function: Callable[[Part], PartResults]) -> PartResults:
        """Calls ``function`` part by part and puts its results together.

        It returns three lists: arrays per query ``[g, t, rows, D]`` that come back as
        ``[B, *out, H, D]``, arrays per key ``[g, t, tk, D]`` that come back summed over the tiles
        as ``[B, *spatial, Hkv, D]``, and gradients of the scores that come back as those of rpb.
        """
        group_step, tile_step, lanes = self._steps()
        done: list[PartResults] = []
        after = [mx.array(0) for _ in lanes]
        turn = itertools.cycle(range(len(lanes)))
        for groups in blocks(self.groups, group_step):
            parts: list[Any] = []
            columns: dict[int, mx.array] = {}
            for part in blocks(self.tiling.tiles, tile_step):
                lane = next(turn)
                with lanes[lane]():
                    queries, keys, scores = function(Part(groups, part, after[lane], columns))
                    parts.append((queries, keys, [self._bias_sums(part, s) for s in scores]))
                    after[lane] = zero_after(parts[-1])
            parts.append(([], [mx.zeros((x.shape[0], 1, *x.shape[2:])) for x in keys], []))
            queries, keys, bias = (_join(kind, 1) for kind in zip(*parts, strict=True))
            done.append((queries, [self._fold(x) for x in keys], bias))
            after[lane] = zero_after(done[-1])
        queries, keys, bias = (_join(kind, 0) for kind in zip(*done, strict=True))
        return (
            [self._queries_back(x) for x in queries],
            [self._keys_back(x) for x in keys],
            [self._bias_back(x, tile_step) for x in bias],
        )

    def _steps(self) -> tuple[int, int, list[Callable[[], Any]]]:
        """Groups and tiles of a part, and the streams that parts take turns on."""
        tiles, per_tile = self.tiling.tiles, self.tiling.keys * self.rows
        lanes: list[Callable[[], Any]] = [contextlib.nullcontext]  # the caller's stream first
        most = GPU_SCORES
        if mx.default_device() == mx.cpu:
            total = min(CPU_SCORES, self.groups * tiles * per_tile)
            more = more_streams()[: max(0, total // LEAST_SCORES - 1)]
            lanes += [functools.partial(mx.stream, stream) for stream in more]
            most = total // len(lanes)
        return max(1, most // (per_tile * tiles)), min(tiles, max(1, most // per_tile)), lanes

    # Queries

    def queries(self, part: Part, x: mx.array) -> mx.array:
        """``[g, t, rows, D]`` from a :func:`flat` ``[B, *out, H, D]``."""
        p = self.problem
        heads = np.arange(part.groups.start * p.group, part.groups.stop * p.group)
        start = self._starts(heads.reshape(-1, 1, p.group, 1), p.heads, math.prod(p.out))
        place = (part.after + self.tiling.query[part.tiles])[:, None, :]  # [t, 1, tq]
        return mx.take(x, (start + place * p.heads).flatten(2), axis=0)

    def _queries_back(self, x: mx.array) -> mx.array:
        """``[G, T, rows, D] -> [B, *out, H, D]``."""
        p, t = self.problem, self.tiling
        if t.query_home is not None:
            place = mx.arange(self.groups)[:, None, None] * (t.tiles * self.rows) + t.query_home
            x = mx.take(x.reshape(-1, x.shape[-1]), place, axis=0)
        return x.reshape(p.batch, p.heads, *p.out, -1).moveaxis(1, -2)

    # Keys

    def keys(self, part: Part, x: mx.array) -> mx.array:
        """``[g, t, tk, D]`` from a :func:`flat` ``[B, *spatial, Hkv, D]``."""
        if id(x) not in part.columns:
            part.columns[id(x)] = self._columns(part, x)
        columns = part.columns[id(x)]
        groups = part.groups.stop - part.groups.start
        if self.tiling.runs is None:
            tiles = columns.reshape(groups, self.tiling.tiles, self.tiling.keys, -1)
            return tiles[:, part.tiles]
        start = index(np.arange(groups)[:, None, None] * (columns.shape[0] // groups))
        place = start + part.after + self.tiling.runs[part.tiles]
        return mx.take(columns, place, axis=0).reshape(*place.shape[:2], self.tiling.keys, -1)

    def _columns(self, part: Part, x: mx.array) -> mx.array:
        """``[g * runs, run * D]``: the runs of keys that all tiles of some groups are made of."""
        p = self.problem
        groups = np.arange(part.groups.start, part.groups.stop)[:, None, None]
        start = self._starts(groups, p.kv_heads, math.prod(p.spatial))
        place = start + (part.after + self.tiling.columns) * p.kv_heads
        return mx.take(x, place, axis=0).reshape(-1, self.tiling.run * x.shape[-1])

    def _fold(self, x: mx.array) -> mx.array:
        """``[g, T + 1, tk, D] -> [g, tokens, D]``: sums what the tiles have of each token.

        The last tile has zeros.
        """
        groups, _, width, dim = x.shape
        for axis, table in zip(self.tiling.axes, self.tiling.folds, strict=True):
            width //= axis.key.shape[1]
            x = x.reshape(-1, width * dim)
            start = mx.arange(groups)[:, None] * (x.shape[0] // groups)
            x = functools.reduce(mx.add, (mx.take(x, start + row, axis=0) for row in table))
        return x

    def _keys_back(self, x: mx.array) -> mx.array:
        """``[G, tokens, D] -> [B, *spatial, Hkv, D]``."""
        p = self.problem
        return x.reshape(p.batch, p.kv_heads, *p.spatial, -1).moveaxis(1, -2)

    @staticmethod
    def _starts(head: np.ndarray, heads: int, tokens: int) -> mx.array:
        """Where heads, counted through all samples, begin in a flat ``[B, tokens, H, D]``."""
        return index(head // heads * (tokens * heads) + head % heads)

    # Bias and mask

    def bias(self, part: Part) -> mx.array:
        """``[g or 1, t, tk, rows]``: what to add to scores, :data:`MASKED` where not seen."""
        table, variant = self._bias, index(self.tiling.variant[part.tiles])
        heads, variants, *shape = table.shape
        if heads > 1:
            group = np.arange(self.groups)[part.groups, None]
            variant = variant + index(group % heads * variants)
        bias = mx.take(table.flatten(0, 1), variant.reshape(-1), axis=0)
        bias = bias.reshape(-1, part.tiles.stop - part.tiles.start, *shape)
        if self.lengths is None:
            return bias
        return bias + mx.where(self._slots(part) < 0, MASKED, 0.0)

    def _bias_variants(self, rpb: mx.array | None) -> mx.array:
        """``[Hkv or 1, variants, tk, rows]``."""
        p, t = self.problem, self.tiling
        if rpb is None:
            return t.row_mask
        table = mx.maximum(rpb.astype(mx.float32), MASKED / 10)  # above what is not seen
        for axis, (pattern, _) in enumerate(t.patterns):
            table = mx.take(table, index(np.maximum(pattern, 0).ravel()), axis=axis + 1)
        table = table.reshape(p.heads, *sum((q.shape for q, _ in t.patterns), ()))
        order = [1 + 3 * a + i for i in range(3) for a in range(p.rank)]
        table = table.transpose(0, *order).reshape(p.kv_heads, p.group, *t.mask.shape)
        return (table + t.mask).transpose(0, 2, 3, 1, 4).flatten(3)

    def _bias_sums(self, part: slice, scores: mx.array) -> mx.array:
        """``[g, t, tk, rows] -> [g, variants of the part, tk, rows]``."""
        bounds = self._variant_bounds(part)
        return mx.stack([scores[:, a:b].sum(axis=1) for a, b in bounds], axis=1)

    def _variant_bounds(self, part: slice) -> list[tuple[int, int]]:
        variant = self.tiling.variant[part]
        cuts = [0, *(np.flatnonzero(np.diff(variant)) + 1), len(variant)]
        return list(itertools.pairwise(cuts))

    def _bias_back(self, x: mx.array, tile_step: int) -> mx.array:
        """``[G, variants of all parts, tk, rows] -> [H, 2K - 1 per axis]``."""
        p, t = self.problem, self.tiling
        shapes = [q.shape for q, _ in t.patterns]
        x = x.reshape(p.batch, p.kv_heads, *x.shape[1:]).sum(axis=0)
        starts = [
            t.variant[part][a]
            for part in blocks(t.tiles, tile_step)
            for a, _ in self._variant_bounds(part)
        ]
        cuts = [0, *(np.flatnonzero(np.diff(starts)) + 1), len(starts)]
        sums = [x[:, a:b].sum(axis=1) for a, b in itertools.pairwise(cuts)]
        x = mx.stack(sums, axis=1)  # [Hkv, variants, tk, rows]
        x = x.reshape(*x.shape[:3], p.group, -1).transpose(0, 3, 1, 2, 4)
        x = x.reshape(p.heads, *(s[i] for i in range(3) for s in shapes))
        order = [1 + i * p.rank + a for a in range(p.rank) for i in range(3)]
        x = x.transpose(0, *order).reshape(p.heads, *map(math.prod, shapes))
        for axis, (pattern, _) in enumerate(t.patterns):
            table = homes(pattern.ravel(), p.neighborhood.bias_shape[axis])
            zero = mx.zeros((*x.shape[: axis + 1], 1, *x.shape[axis + 2 :]))
            x = mx.take(mx.concatenate([x, zero], axis + 1), index(table), axis=axis + 1)
            x = x.sum(axis=axis + 2)
        return x

    # Slots

    def to_slots(self, part: Part, x: mx.array, absent: float) -> mx.array:
        """``[g, t, tk, rows] -> [g, t, rows, prod K]``, ``absent`` in slots without a key."""
        sizes = [a.key.shape[1] for a in self.tiling.axes]
        return self._regroup(x, self._per_axis(part, "position", sizes), absent).mT

    def from_slots(self, part: Part, x: mx.array) -> mx.array:
        """``[g, t, rows, prod K] -> [g, t, tk, rows]``, zero for keys that are not seen."""
        return self._regroup(x.mT, self._slots(part), 0.0)

    def _regroup(self, x: mx.array, place: mx.array, absent: float) -> mx.array:
        place = mx.broadcast_to(place, (x.shape[0], *place.shape[1:]))
        found = mx.take_along_axis(x, mx.maximum(place, 0), axis=-2)
        return mx.where(place < 0, absent, found)

    def _slots(self, part: Part) -> mx.array:
        """``[g or 1, t, tk, rows]``: the slot of a key in a query's window, -1 if not seen."""
        return self._per_axis(part, "slot", self.problem.neighborhood.kernel_size)

    def _per_axis(self, part: Part, table: str, sizes: Sequence[int]) -> mx.array:
        """An index table of ``AxisTiles`` for all axes together."""
        parts = []
        for a, (axis, place) in enumerate(zip(self.tiling.axes, self.tiling.places, strict=True)):
            if self.lengths is None:
                whole = mx.array(getattr(axis, table)(axis.length).astype(np.int32))[None]
            else:
                whole = getattr(axis, table)(self.lengths[:, a, None, None], mx)
                sample = np.arange(self.groups)[part.groups] // self.problem.kv_heads
                whole = mx.take(whole, index(sample), axis=0)
            parts.append(mx.take(whole, index(place[part.tiles]), axis=1))
        return mx.tile(combine(parts, sizes, 2, mx), (1, 1, 1, self.problem.group))


@functools.cache
def more_streams() -> list[Any]:
    """CPU streams beside the default one; every thread that uses them has its own."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(LANES - 1)]


def zero_after(results: PartResults) -> mx.array:
    """An integer zero that is known only when some arrays are.

    It orders computations as ``mx.depends`` does, which ``mx.vmap`` does not know.
    """
    firsts = [x[(0,) * x.ndim] for arrays in results for x in arrays]
    return sum(((x < 0) & (x > 0) for x in firsts), start=mx.array(0))


def flat(x: mx.array) -> mx.array:
    """``[..., D] -> [rows, D]`` in float32."""
    return x.reshape(-1, x.shape[-1]).astype(mx.float32)


def _join(parts: Sequence[list[mx.array]], axis: int) -> list[mx.array]:
    """The first arrays of all parts in one, the second ones, and so on."""
    some = [part for part in parts if part]
    if len(some) == 1:
        return some[0]
    return [mx.concatenate(list(xs), axis=axis) for xs in zip(*some, strict=True)]

"""Moving arrays between tokens and tiles, a bounded part at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .problem import Problem
from .tiling import Tiling, blocks, combine, homes, tiling

# Scores that are held at once: on a CPU they should stay in its cache.
CPU_SCORES, GPU_SCORES = 1 << 18, 1 << 24
MASKED = -1e30

# Arrays per query, arrays per key, gradients of scores.
Kinds = tuple[list[mx.array], list[mx.array], list[mx.array]]


@dataclass(frozen=True)
class Part:
    """Some heads and some tiles. A group is one key/value head of one sample."""

    groups: slice
    tiles: slice
    after: list[mx.array]  # what to compute before, so that one part is held at a time


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
        self.rows = problem.group * self.tiling.queries
        self._bias = self._bias_variants(rpb)

    # Parts

    def map(self, function: Callable[[Part], Kinds]) -> Kinds:
        """Calls ``function`` part by part and puts its results together.

        It returns three lists: arrays per query ``[g, t, rows, D]`` that come back as
        ``[B, *out, H, D]``, arrays per key ``[g, t, tk, D]`` that come back summed over the tiles
        as ``[B, *spatial, Hkv, D]``, and gradients of the scores that come back as those of rpb.
        """
        tiles = self.tiling.tiles
        most = CPU_SCORES if mx.default_device() == mx.cpu else GPU_SCORES
        per_tile = self.tiling.keys * self.rows
        tile_step = min(tiles, max(1, most // per_tile))
        group_step = max(1, most // (per_tile * tiles))
        done: list[Kinds] = []
        after: list[mx.array] = []
        for groups in blocks(self.groups, group_step):
            columns = []
            for part in blocks(tiles, tile_step):
                queries, keys, scores = function(Part(groups, part, after))
                columns.append((queries, keys, [self._bias_sums(part, s) for s in scores]))
                after = [*queries, *keys]
            queries, keys, bias = (_join(kind, 1) for kind in zip(*columns, strict=True))
            done.append((queries, [self._fold(x) for x in keys], bias))
            after = [x for kind in done[-1] for x in kind]
        queries, keys, bias = (_join(kind, 0) for kind in zip(*done, strict=True))
        return (
            [self._queries_back(x) for x in queries],
            [self._keys_back(x) for x in keys],
            [self._bias_back(x, tile_step) for x in bias],
        )

    # Queries

    def queries(self, part: Part, x: mx.array) -> mx.array:
        """``[B, *out, H, D] -> [g, t, rows, D]`` in float32."""
        p = self.problem
        place = np.maximum(self.tiling.query[part.tiles], 0)[:, None, :]  # [t, 1, tq]
        heads = np.arange(p.batch * p.heads).reshape(self.groups, 1, p.group, 1)[part.groups]
        sample, head = np.divmod(heads, p.heads)
        base = sample * (math.prod(p.out) * p.heads) + head
        return self._take(part, x, place * p.heads, base).reshape(
            base.shape[0], place.shape[0], self.rows, -1
        )

    def _queries_back(self, x: mx.array) -> mx.array:
        """``[G, T, rows, D] -> [B, *out, H, D]``."""
        p, t = self.problem, self.tiling
        tile, query = np.divmod(t.query_home, t.queries)
        place = (tile * self.rows + query)[:, None]
        group, member = np.divmod(np.arange(p.heads), p.group)
        head = group * (t.tiles * self.rows) + member * t.queries
        sample = np.arange(p.batch)[:, None, None] * (p.kv_heads * t.tiles * self.rows)
        index = _index(sample) + _index(place + head)
        x = mx.take(x.reshape(-1, x.shape[-1]), index, axis=0)
        return x.reshape(p.batch, *p.out, p.heads, -1)

    # Keys

    def keys(self, part: Part, x: mx.array) -> mx.array:
        """``[B, *spatial, Hkv, D] -> [g, t, tk, D]`` in float32."""
        p = self.problem
        place = np.maximum(self.tiling.key[part.tiles], 0)  # [t, tk]
        sample, head = np.divmod(np.arange(self.groups)[part.groups, None, None], p.kv_heads)
        base = sample * (math.prod(p.spatial) * p.kv_heads) + head
        return self._take(part, x, place * p.kv_heads, base)

    def _fold(self, x: mx.array) -> mx.array:
        """``[g, T, tk, D] -> [g, tokens, D]``: sums what the tiles have of each token."""
        groups, dim, places = x.shape[0], x.shape[-1], self.tiling.tiles * self.tiling.keys
        table = self.tiling.key_homes
        offset = np.arange(groups)[:, None, None] * places
        index = np.where(table == places, groups * places, offset + table)
        rows = mx.concatenate([x.reshape(-1, dim), mx.zeros((1, dim))])
        return mx.take(rows, _index(index), axis=0).sum(axis=2)

    def _keys_back(self, x: mx.array) -> mx.array:
        """``[G, tokens, D] -> [B, *spatial, Hkv, D]``."""
        p = self.problem
        x = x.reshape(p.batch, p.kv_heads, -1, x.shape[-1]).transpose(0, 2, 1, 3)
        return x.reshape(p.batch, *p.spatial, p.kv_heads, -1)

    def _take(self, part: Part, x: mx.array, place: np.ndarray, base: np.ndarray) -> mx.array:
        index = _index(place)
        if part.after:
            index = mx.depends([index], part.after)[0]
        return mx.take(x.reshape(-1, x.shape[-1]), index + _index(base), axis=0).astype(mx.float32)

    # Bias and mask

    def bias(self, part: Part) -> mx.array:
        """``[g or 1, t, tk, rows]``: what to add to scores, :data:`MASKED` where not seen."""
        table, variant = self._bias, _index(self.tiling.variant[part.tiles])
        heads, variants, *shape = table.shape
        if heads > 1:
            group = np.arange(self.groups)[part.groups, None]
            variant = variant + _index(group % heads * variants)
        bias = mx.take(table.flatten(0, 1), variant.reshape(-1), axis=0)
        bias = bias.reshape(-1, part.tiles.stop - part.tiles.start, *shape)
        if self.lengths is None:
            return bias
        return bias + mx.where(self.slots(part) < 0, MASKED, 0.0)

    def _bias_variants(self, rpb: mx.array | None) -> mx.array:
        """``[Hkv or 1, variants, tk, rows]``."""
        p, t = self.problem, self.tiling
        mask = mx.array(np.where(t.seen, 0, MASKED).astype(np.float32))
        if rpb is None:
            return mx.tile(mask, (1, 1, p.group))[None]
        table = rpb.astype(mx.float32)
        for axis, (pattern, _) in enumerate(t.patterns):
            table = mx.take(table, _index(np.maximum(pattern, 0).ravel()), axis=axis + 1)
        table = table.reshape(p.heads, *sum((q.shape for q, _ in t.patterns), ()))
        order = [1 + 3 * a + i for i in range(3) for a in range(p.rank)]
        table = table.transpose(0, *order).reshape(p.kv_heads, p.group, *mask.shape)
        return (table + mask).transpose(0, 2, 3, 1, 4).flatten(3)

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
            x = mx.take(mx.concatenate([x, zero], axis + 1), _index(table), axis=axis + 1)
            x = x.sum(axis=axis + 2)
        return x

    # Slots

    def slots(self, part: Part) -> mx.array:
        """``[g or 1, t, tk, rows]``: the slot of a key in a query's window, -1 if not seen."""
        return self._per_axis(part, "slot", self.problem.neighborhood.kernel_size)

    def positions(self, part: Part) -> mx.array:
        """``[g or 1, t, prod K, rows]``: where in the tile a slot's key is, -1 if it has none."""
        return self._per_axis(part, "position", [a.key.shape[1] for a in self.tiling.axes])

    def _per_axis(self, part: Part, table: str, sizes: list[int] | tuple[int, ...]) -> mx.array:
        parts = []
        for a, (axis, place) in enumerate(zip(self.tiling.axes, self.tiling.places, strict=True)):
            if self.lengths is None:
                whole = mx.array(getattr(axis, table)(axis.length).astype(np.int32))[None]
            else:
                whole = getattr(axis, table)(self.lengths[:, a, None, None], mx)
                sample = np.arange(self.groups)[part.groups] // self.problem.kv_heads
                whole = mx.take(whole, _index(sample), axis=0)
            parts.append(mx.take(whole, _index(place[part.tiles]), axis=1))
        index = combine(parts, sizes, 2, mx)
        return mx.tile(index, (1, 1, 1, self.problem.group))


def _join(parts: Sequence[list[mx.array]], axis: int) -> list[mx.array]:
    """The first arrays of all parts in one, the second ones, and so on."""
    return [mx.concatenate(list(xs), axis=axis) for xs in zip(*parts, strict=True)]


def _index(table: np.ndarray) -> mx.array:
    return mx.array(np.ascontiguousarray(table, dtype=np.int32))

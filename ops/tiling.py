"""Tiles of neighboring queries: the tables by which the pure tier moves tokens.

A tile holds ``tq`` queries of one dilation group per axis and the ``tk`` keys that are the union
of their windows, ranks in a row. Tiles of several axes are the Cartesian product of the tiles of
each. Everything here depends on shapes only and is built once per shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from .neighborhood import Neighborhood
from .problem import Problem

SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """The tiles of one axis; -1 fills up what a tile lacks."""

    hood: Neighborhood
    axis: int
    length: int
    token: np.ndarray  # [T, tq] token of each query
    key: np.ndarray  # [T, tk] token of each key

    @property
    def entry(self) -> np.ndarray:
        """``[T, tq]``: each query's place in the output, which a stride makes shorter."""
        return np.where(self.token < 0, -1, self.token // self.hood.stride[self.axis])

    def slot(self, length: Any, xp: ModuleType = np) -> Any:
        """``[..., T, tk, tq]``: the slot a key has in a query's window; -1 if not seen.

        ``length`` is the axis' length or an array of lengths ``[..., 1, 1]``.
        """
        token, key, first, count = self._window(length, xp)
        step = (key[:, :, None] - first[..., None, :]) // self.hood.dilation[self.axis]
        inside = ((token >= 0) & (token < length))[..., None, :] & (key >= 0)[:, :, None]
        return xp.where(inside & (step >= 0) & (step < count[..., None, :]), step, -1)

    def position(self, length: Any, xp: ModuleType = np) -> Any:
        """``[..., T, K, tq]``: where in the tile a query finds each slot; -1 if it has no key."""
        token, key, first, count = self._window(length, xp)
        slot = xp.arange(self.hood.kernel_size[self.axis])[:, None]
        start = (first - key[:, :1]) // self.hood.dilation[self.axis]
        inside = ((token >= 0) & (token < length))[..., None, :]
        return xp.where(inside & (slot < count[..., None, :]), start[..., None, :] + slot, -1)

    def _window(self, length: Any, xp: ModuleType) -> tuple[Any, Any, Any, Any]:
        token, key = xp.array(self.token), xp.array(self.key)
        first, count = self.hood.window(self.axis, xp.maximum(token, 0), length, xp)
        return token, key, first, xp.broadcast_to(count, first.shape)

    def pattern(self, static: bool) -> tuple[np.ndarray, np.ndarray]:
        """``([variants, tk, tq], [T])``: the few different index patterns of the bias table.

        Tiles inside the axis look alike; only those near a border differ. ``static`` patterns
        hold -1 where a query does not see a key.
        """
        d, size = self.hood.dilation[self.axis], self.hood.kernel_size[self.axis]
        relative = (self.key[:, :, None] - self.token[:, None, :]) // d + size - 1
        relative = np.clip(relative, 0, 2 * size - 2).astype(np.int32)
        if static:
            relative[self.slot(self.length) < 0] = -1
        flat, variant = np.unique(relative.reshape(len(relative), -1), axis=0, return_inverse=True)
        return flat.reshape(-1, *relative.shape[1:]), variant.reshape(-1)


@lru_cache(maxsize=1024)
def axis_tiles(hood: Neighborhood, axis: int, length: int, side: int, varlen: bool) -> AxisTiles:
    """Cuts the queries of one axis into tiles of ``side``."""
    d = hood.dilation[axis]
    tokens = np.arange(0, length, hood.stride[axis])
    low, high = _reach(hood, axis, tokens, length, varlen)
    tiles, bounds = [], []
    for group in range(min(d, length)):
        members = np.flatnonzero(tokens % d == group)
        for i in range(0, len(members), side):
            tile = members[i : i + side]
            tiles.append(np.pad(tokens[tile], (0, side - len(tile)), constant_values=-1))
            size = len(range(group, length, d))
            bounds.append((group, size, low[tile].min(), high[tile].max()))
    group, size, start, last = np.array(bounds).T
    width = (last - start).max() + 1
    start = np.maximum(np.minimum(start, size - width), 0)  # keep the keys inside the axis
    rank = start[:, None] + np.arange(width)
    key = np.where(rank < size[:, None], group[:, None] + d * rank, -1)
    return AxisTiles(hood, axis, length, np.stack(tiles), key)


def _reach(
    hood: Neighborhood, axis: int, tokens: np.ndarray, length: int, varlen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """First and last rank that each query can see, for all sample lengths if they vary."""
    d, token, lengths = hood.dilation[axis], tokens[:, None], np.full((1, 1), length)
    if varlen:  # a border farther away than this does not move the window
        far = (hood.kernel_size[axis] + hood.window_stride[axis] + 1) * d
        lengths = np.minimum(token + np.arange(1, far + 1), length)
    first, count = hood.window(axis, token, lengths)
    return (first // d).min(1), (first // d + count).max(1) - 1


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of all axes; tiles of one variant follow each other."""

    hood: Neighborhood
    spatial: tuple[int, ...]
    varlen: bool
    axes: tuple[AxisTiles, ...]

    @property
    def tiles(self) -> int:
        return math.prod(len(a.token) for a in self.axes)

    @property
    def queries(self) -> int:
        """Queries of a tile."""
        return math.prod(a.token.shape[1] for a in self.axes)

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return math.prod(a.key.shape[1] for a in self.axes)

    @cached_property
    def patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """:meth:`AxisTiles.pattern` of each axis."""
        return [a.pattern(static=not self.varlen) for a in self.axes]

    @cached_property
    def variant(self) -> np.ndarray:
        """``[T]``: which combination of the axes' patterns a tile has; ascending."""
        counts = [len(p) for p, _ in self.patterns]
        ids = [v[i] for (_, v), i in zip(self.patterns, self._grid, strict=True)]
        return np.sort(np.ravel_multi_index(ids, counts))

    @cached_property
    def places(self) -> list[np.ndarray]:
        """``[T]`` per axis: the tile of that axis that a tile is made of."""
        counts = [len(p) for p, _ in self.patterns]
        ids = [v[i] for (_, v), i in zip(self.patterns, self._grid, strict=True)]
        order = np.argsort(np.ravel_multi_index(ids, counts), kind="stable")
        return [i[order] for i in self._grid]

    @property
    def _grid(self) -> np.ndarray:
        return np.indices([len(a.token) for a in self.axes]).reshape(len(self.axes), -1)

    @cached_property
    def query(self) -> mx.array:
        """``[T, tq]``: flat output place of each query, some place where there is none."""
        return index(np.maximum(self._query, 0))

    @cached_property
    def query_home(self) -> mx.array:
        """``[2, queries]``: the tile of each output place, and its place in the tile."""
        where = homes(self._query.ravel(), math.prod(self.hood.output_size(self.spatial)))[:, 0]
        return index(np.stack(np.divmod(where, self.queries)))

    @property
    def _query(self) -> np.ndarray:
        parts = [a.entry[i] for a, i in zip(self.axes, self.places, strict=True)]
        return combine(parts, self.hood.output_size(self.spatial), 1)

    @property
    def run(self) -> int:
        """Keys of a tile on the last axis."""
        return self.axes[-1].key.shape[1]

    @cached_property
    def columns(self) -> mx.array:
        """``[tokens of the other axes, keys of all tiles of the last axis]``: flat tokens.

        In this order the keys that a tile has in one row are neighbors, a run.
        """
        rest = np.arange(math.prod(self.spatial[:-1]))[:, None]
        return index(rest * self.spatial[-1] + np.maximum(self.axes[-1].key.ravel(), 0))

    @cached_property
    def runs(self) -> mx.array:
        """``[T, tk / run]``: the runs of a tile, counted in the order of :attr:`columns`."""
        parts = [a.key[i] for a, i in zip(self.axes, self.places, strict=True)]
        parts[-1] = self.places[-1][:, None]
        sizes = [*self.spatial[:-1], len(self.axes[-1].key)]
        return index(np.maximum(combine(parts, sizes, 1), 0))

    @cached_property
    def folds(self) -> list[mx.array]:
        """How to sum the tiles' rows of each token, an axis at a time.

        The table of an axis is ``[n, rows]``: the rows to sum, one after the other. It turns
        ``[*tokens of the axes before, *tiles of this axis and those after, tk of this axis]`` into
        the same with the tokens of this axis in place of its tiles and keys. Where fewer than
        ``n`` tiles have a token the table points at the row behind the last: zeros, also made
        for the next axis.
        """
        counts = [len(a.token) for a in self.axes]
        rank = np.empty(self.tiles, np.int64)
        rank[np.ravel_multi_index(self.places, counts)] = np.arange(self.tiles)
        tables, tokens = [], 1
        for i, axis in enumerate(self.axes):
            width, tail = axis.key.shape[1], math.prod(counts[i + 1 :])
            place = homes(axis.key.ravel(), axis.length).T[:, None, :, None]  # [n, 1, length, 1]
            tile, key = np.divmod(np.minimum(place, axis.key.size - 1), width)
            tile = (np.arange(tokens)[:, None, None] * counts[i] + tile) * tail + np.arange(tail)
            if i == 0:
                tile = rank[tile]
            behind = tokens * counts[i] * tail * width
            row = np.where(place == axis.key.size, behind, tile * width + key)
            row = row.reshape(len(row), -1)
            if i + 1 < len(counts):
                row = np.pad(row, ((0, 0), (0, 1)), constant_values=behind)
            tables.append(index(row))
            tokens *= axis.length
        return tables

    @cached_property
    def seen(self) -> np.ndarray:
        """``[variants, tk, tq]``: whether a query may see a key, as far as shapes decide."""
        parts = [np.minimum(p, 0) for p, _ in self.patterns]
        ids = np.indices([len(p) for p in parts]).reshape(len(parts), -1)
        parts = [p[i] for p, i in zip(parts, ids, strict=True)]
        return combine(parts, [1] * len(parts), 2) >= 0


@lru_cache(maxsize=128)
def tiling(problem: Problem) -> Tiling:
    """The tiling of the least estimated cost."""
    hood, varlen = problem.neighborhood, problem.has_lengths
    per_axis = []
    for axis, length in enumerate(problem.spatial):
        most = -(-len(range(0, length, hood.stride[axis])) // 1)
        sides = [s for s in SIDES if s <= most]
        per_axis.append([axis_tiles(hood, axis, length, s, varlen) for s in sides])
    axes = min(itertools.product(*per_axis), key=lambda axes: _cost(problem, axes))
    return Tiling(hood, problem.spatial, varlen, axes)


def _cost(problem: Problem, axes: Sequence[AxisTiles]) -> float:
    """Estimated work in multiply-adds, forward and backward, one head; fitted to a CPU."""
    tiles = math.prod(len(a.token) for a in axes)
    queries = math.prod(a.token.shape[1] for a in axes) * problem.group
    keys = math.prod(a.key.shape[1] for a in axes)
    dims = problem.head_dim + problem.value_dim
    short = 1 + (2.5 / queries) ** 2  # short rows are slow to multiply
    return tiles * (queries * keys * (dims * short + 40) + keys * (40 + dims) + 3000)


def combine(parts: Sequence[Any], sizes: Sequence[int], dims: int, xp: ModuleType = np) -> Any:
    """Row-major index over all axes from an index per axis; -1 where an axis has -1.

    The last ``dims`` axes of each part are multiplied out: ``[..., n_a] -> [..., prod(n_a)]``.
    """
    rank, total, missing = len(parts), 0, xp.array(False)
    for a, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        lead, own = part.shape[:-dims], part.shape[-dims:]
        own = itertools.chain(*((*(1,) * a, n, *(1,) * (rank - 1 - a)) for n in own))
        part = part.reshape(*lead, *own)
        total = total * size + xp.maximum(part, 0)
        missing = missing | (part < 0)
    shape = [math.prod(p.shape[i] for p in parts) for i in range(-dims, 0)]
    return xp.where(missing, -1, total).reshape(*parts[0].shape[:-dims], *shape)


def homes(index: np.ndarray, size: int) -> np.ndarray:
    """``[size, n]``: the places in ``index`` that hold each number, filled up with its length."""
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    counts = np.bincount(index[order], minlength=size)
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((size, max(counts.max(), 1)), len(index))
    table[index[order], column] = order
    return table


def index(table: np.ndarray) -> mx.array:
    """A table for ``mx.take``."""
    return mx.array(np.ascontiguousarray(table, dtype=np.int32))


def blocks(total: int, size: int) -> Iterator[slice]:
    """``[0, total)`` in slices of ``size``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

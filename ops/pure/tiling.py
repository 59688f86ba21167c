"""Tiles of neighboring queries: the tables by which the pure tier moves tokens.

With dilation `d` the tokens `i` of equal `i % d` are a group, `i // d` is the ordinal of a
token in its group. A tile holds `tq` queries of one group per axis and the `tk` keys that are
the union of their windows, of consecutive ordinals. Tiles of several axes are the Cartesian product
of the tiles of each. Everything here depends on shapes only and is built once per shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from ..neighborhood import Neighborhood
from ..problem import Problem
from .axis_tiles import AxisTiles, axis_tiles

MASKED = -1e38  # finite: a difference of two infinities is NaN
SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of all axes; tiles of one variant follow each other.

    Its MLX arrays are made of NumPy's, not computed: they outlive a trace of `mx.compile`.
    """

    hood: Neighborhood
    spatial: tuple[int, ...]
    sharing: int  # query heads that share a key head
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
    def rows(self) -> int:
        """Rows of scores of a tile: its queries of all heads that share a key head."""
        return self.sharing * self.queries

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return math.prod(a.key.shape[1] for a in self.axes)

    @cached_property
    def patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """`AxisTiles.pattern` of each axis."""
        return [a.pattern(static=not self.varlen) for a in self.axes]

    @cached_property
    def variant(self) -> np.ndarray:
        """`[T]`: which combination of the axes' patterns a tile has; ascending."""
        return np.sort(self._combinations)

    @cached_property
    def places(self) -> list[np.ndarray]:
        """`[T]` per axis: the tile of that axis that a tile is made of."""
        order = np.argsort(self._combinations, kind="stable")
        return [i[order] for i in self._grid]

    @cached_property
    def _combinations(self) -> np.ndarray:
        """`variant` in the order of `_grid`."""
        counts = [len(p) for p, _ in self.patterns]
        ids = [v[i] for (_, v), i in zip(self.patterns, self._grid, strict=True)]
        variants: np.ndarray = np.ravel_multi_index(ids, counts)
        return variants

    @property
    def _grid(self) -> np.ndarray:
        return np.indices([len(a.token) for a in self.axes]).reshape(len(self.axes), -1)

    @cached_property
    def query(self) -> mx.array:
        """`[T, tq]`: flat output place of each query, some place where there is none."""
        return index(np.maximum(self._query, 0))

    @cached_property
    def query_home(self) -> mx.array | None:
        """`[sharing, queries]`: where in `[T * rows]` each output place is computed.

        Here and below, None stands for the table that leaves everything in its place.
        """
        where = homes(self._query.ravel(), self._outputs)[:, 0]
        tile, query = np.divmod(where, self.queries)
        member = np.arange(self.sharing)[:, None]
        return unless_identity(
            tile * self.rows + member * self.queries + query, self.tiles * self.rows
        )

    @property
    def _outputs(self) -> int:
        return math.prod(self.hood.output_size(self.spatial))

    @property
    def _query(self) -> np.ndarray:
        parts = [a.entry[i] for a, i in zip(self.axes, self.places, strict=True)]
        tokens: np.ndarray = combine(parts, self.hood.output_size(self.spatial), 1)
        return tokens

    @property
    def run(self) -> int:
        """Keys of a run: those of a tile on the last axis."""
        return int(self.axes[-1].key.shape[1])

    @cached_property
    def run_tokens(self) -> mx.array:
        """`[tokens of the other axes, keys of all tiles of the last axis]`: flat tokens.

        In this order the keys that a tile has along the last axis are neighbors, a run.
        """
        rest = np.arange(math.prod(self.spatial[:-1]))[:, None]
        return index(rest * self.spatial[-1] + np.maximum(self.axes[-1].key.ravel(), 0))

    @cached_property
    def tile_runs(self) -> mx.array | None:
        """`[T, tk / run]`: the runs of a tile, counted in the order of `run_tokens`."""
        parts = [a.key[i] for a, i in zip(self.axes, self.places, strict=True)]
        parts[-1] = self.places[-1][:, None]
        sizes = [*self.spatial[:-1], len(self.axes[-1].key)]
        return unless_identity(np.maximum(combine(parts, sizes, 1), 0), math.prod(sizes))

    @cached_property
    def folds(self) -> list[mx.array]:
        """How to sum the tiles' rows of each token, an axis at a time: `fold` of each axis.

        Each turns `[*tokens of the axes before, *tiles of this axis and those after, tk of this
        axis]` into the same with the tokens of this axis in place of its tiles and keys. All but
        the last also make the row of zeros that the next one needs.
        """
        counts = [len(a.token) for a in self.axes]
        tiles = np.empty(self.tiles, np.int64)  # tiles are not in the order of the axes' tiles
        tiles[np.ravel_multi_index(self.places, counts)] = np.arange(self.tiles)
        tables, tokens = [], 1
        for i, axis in enumerate(self.axes):
            key = axis.key if self.varlen else axis.used
            rows = fold(key, axis.length, tiles.reshape(tokens, counts[i], -1))
            if axis is not self.axes[-1]:
                rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=tiles.size * key.shape[1])
            tables.append(index(rows))
            tokens *= axis.length
            tiles = np.arange(tokens * math.prod(counts[i + 1 :]))
        return tables

    @cached_property
    def mask(self) -> mx.array:
        """`[variants, tk, tq]`: 0, and `MASKED` for keys that no shape lets a query see."""
        return mx.array(self._mask)

    @cached_property
    def row_mask(self) -> mx.array:
        """`[1, variants, tk, rows]`: `mask` for all heads that share a key head."""
        return mx.array(np.tile(self._mask, (1, 1, self.sharing))[None])

    @property
    def _mask(self) -> np.ndarray:
        parts = [np.minimum(p, 0) for p, _ in self.patterns]
        ids = np.indices([len(p) for p in parts]).reshape(len(parts), -1)
        parts = [p[i] for p, i in zip(parts, ids, strict=True)]
        seen = combine(parts, [1] * len(parts), 2) >= 0
        return np.where(seen, 0, MASKED).astype(np.float32)


def tiling(problem: Problem) -> Tiling:
    """The tiling of the least estimated cost."""
    dims = problem.head_dim + problem.value_dim
    hood, varlen = problem.neighborhood, problem.has_lengths
    return _tiling(hood, problem.spatial, problem.gqa_factor, dims, varlen)


@lru_cache(maxsize=128)
def _tiling(
    hood: Neighborhood, spatial: tuple[int, ...], sharing: int, dims: int, varlen: bool
) -> Tiling:
    per_axis = []
    for axis, (length, queries) in enumerate(zip(spatial, hood.output_size(spatial), strict=True)):
        sides = [s for s in SIDES if s <= queries]
        per_axis.append([axis_tiles(hood, axis, length, s, varlen) for s in sides])
    tilings = (
        Tiling(hood, spatial, sharing, varlen, axes) for axes in itertools.product(*per_axis)
    )
    return min(tilings, key=lambda one: _cost(one, dims))


def _cost(one: Tiling, dims: int) -> float:
    """Estimated multiply-adds, forward and backward, for one key head; fitted to a CPU.

    A score costs its products (short rows are slow to multiply) and its exponentials, a key of a
    tile the copies of it and of its gradients, a tile the calls.
    """
    score = dims * (1 + (2.5 / one.rows) ** 2) + 40
    return one.tiles * (one.keys * (one.rows * score + 2 * dims + 75) + 3000)


def combine(parts: Sequence[Any], sizes: Sequence[int], dims: int, xp: ModuleType = np) -> Any:
    """Row-major index over all axes from an index per axis; -1 where an axis has -1.

    The last `dims` axes of each part are multiplied out: `[..., n_a] -> [..., prod(n_a)]`.
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


def fold(key: np.ndarray, length: int, tiles: np.ndarray) -> np.ndarray:
    """The rows to sum for each token of an axis, one after the other.

    Of the five tokens below token 2 is the third key of the first of three tiles, the
    second of the next and of the last: the sum of the rows 2, 5 and 9. Token 0 is in one tile only;
    row 12, behind the last, stands for zeros.

    Args:
        key: `[tiles of the axis, tk]`: the token of each key, -1 for none.
        length: Of the axis.
        tiles: `[tokens of the axes before, tiles of the axis, tiles of those after]`: the number
            of each tile. Row `r` is key `r % tk` of tile `r // tk`.

    Returns:
        `[n, tokens before * length * tiles after]`: `n` is in how many tiles a token can be.

    Examples:
        >>> key = np.array([[0, 1, 2, -1], [1, 2, 3, 4], [-1, 2, 3, 4]])
        >>> fold(key, 5, np.arange(3).reshape(1, 3, 1))
        array([[ 0,  1,  2,  6,  7],
               [12,  4,  5, 10, 11],
               [12, 12,  9, 12, 12]])
    """
    width, none = key.shape[1], tiles.size * key.shape[1]
    place = homes(key.ravel(), length)  # [length, n], key.size where there is none
    tile, at = np.divmod(np.minimum(place, key.size - 1), width)
    rows = tiles[:, tile] * width + at[:, :, None]  # [before, length, n, after]
    rows = np.where((place == key.size)[:, :, None], none, rows)
    table: np.ndarray = np.moveaxis(rows, 2, 0).reshape(place.shape[1], -1)
    return table


def homes(index: np.ndarray, size: int) -> np.ndarray:
    """`[size, n]`: the places in `index` that hold each number, filled up with its length."""
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    counts = np.bincount(index[order], minlength=size)
    earlier = np.repeat(np.cumsum(counts) - counts, counts)  # places of smaller numbers
    table = np.full((size, max(counts.max(), 1)), len(index))
    table[index[order], np.arange(len(order)) - earlier] = order
    return table


def index(table: np.ndarray) -> mx.array:
    """A table for `mx.take`."""
    return mx.array(np.ascontiguousarray(table, dtype=np.int32))


def unless_identity(table: np.ndarray, size: int) -> mx.array | None:
    """`index` of a table, None if it leaves `size` rows where they are."""
    return None if np.array_equal(table.ravel(), np.arange(size)) else index(table)

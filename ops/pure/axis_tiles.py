"""Tiles of neighboring queries on one axis, and the union of keys that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ..neighborhood import Neighborhood


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
        """`[T, tq]`: each query's place in the output, which a stride makes shorter."""
        return np.where(self.token < 0, -1, self.token // self.hood.stride[self.axis])

    @property
    def used(self) -> np.ndarray:
        """`key` with -1 also for keys that no query of the tile sees."""
        return np.where((self.slot(self.length) >= 0).any(axis=-1), self.key, -1)

    def slot(self, length: Any, xp: ModuleType = np) -> Any:
        """`[..., T, tk, tq]`: the slot a key has in a query's window; -1 if not seen.

        `length` is the axis' length or an array of lengths `[..., 1, 1]`.
        """
        token, key, first, count = self._window(length, xp)
        step = (key[:, :, None] - first[..., None, :]) // self.hood.dilation[self.axis]
        inside = ((token >= 0) & (token < length))[..., None, :] & (key >= 0)[:, :, None]
        return xp.where(inside & (step >= 0) & (step < count[..., None, :]), step, -1)

    def position(self, length: Any, xp: ModuleType = np) -> Any:
        """`[..., T, K, tq]`: where in the tile a query finds each slot; -1 if it has no key."""
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
        """`([variants, tk, tq], [T])`: the few different index patterns of the bias table.

        Tiles inside the axis look alike; only those near a border differ. `static` patterns
        hold -1 where a query does not see a key.
        """
        d, size = self.hood.dilation[self.axis], self.hood.kernel_size[self.axis]
        relative = (self.key[:, :, None] - self.token[:, None, :]) // d + size - 1
        relative = np.clip(relative, 0, 2 * size - 2).astype(np.int32)
        if static:
            relative[self.slot(self.length) < 0] = -1
        _, first, variant = np.unique(
            relative.reshape(len(relative), -1), axis=0, return_index=True, return_inverse=True
        )
        order = np.argsort(first)  # by first appearance: tiles of a single axis stay in order
        return relative[first[order]], np.argsort(order)[variant.reshape(-1)]


@lru_cache(maxsize=1024)
def axis_tiles(hood: Neighborhood, axis: int, length: int, side: int, varlen: bool) -> AxisTiles:
    """Cuts the queries of one axis into tiles of `side`."""
    d = hood.dilation[axis]
    tokens = np.arange(0, length, hood.stride[axis])
    low, high = _reach(hood, axis, tokens, length, varlen)
    token: list[np.ndarray] = []
    bounds: list[np.ndarray] = []  # [3, tiles]: dilation group, first and last ordinal
    for g in range(min(d, length)):
        members = np.flatnonzero(tokens % d == g)
        rest = -len(members) % side
        tiles = np.pad(members, (0, rest), mode="edge" if len(members) else "empty")
        tiles = tiles.reshape(-1, side)
        seen = low[tiles].min(axis=1), high[tiles].max(axis=1)
        bounds.append(np.stack([np.full(len(tiles), g), *seen]))
        token.append(np.pad(tokens[members], (0, rest), constant_values=-1).reshape(-1, side))
    group, start, last = np.concatenate(bounds, axis=1)
    size = length // d + (group < length % d)
    width = (last - start).max() + 1
    start = np.maximum(np.minimum(start, size - width), 0)  # keep the keys inside the axis
    ordinal = start[:, None] + np.arange(width)
    key = np.where(ordinal < size[:, None], group[:, None] + d * ordinal, -1)
    return AxisTiles(hood, axis, length, np.concatenate(token), key)


def _reach(
    hood: Neighborhood, axis: int, tokens: np.ndarray, length: int, varlen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ordinals in its group of the first and the last token that each query can see.

    For all sample lengths, if they vary.
    """
    d, token, lengths = hood.dilation[axis], tokens[:, None], np.full((1, 1), length)
    if varlen:  # a border that is farther away than this does not move the window
        far = hood.kernel_size[axis] + hood.window_stride[axis] + 1
        lengths = np.minimum(token + 1 + d * np.arange(far), length)
    first, count = hood.window(axis, token, lengths)
    return (first // d).min(1), (first // d + count).max(1) - 1

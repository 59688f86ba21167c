"""The relative position bias by tile, and its gradient from that of the scores of tiles.

Tiles that lie alike bring the same entries of `rpb` together: they are one variant. Shapes below
are those of two axes: `V` variants, `tk` keys and `tq` queries of a tile, each the product of
an axis' own (`V0 V1` and so on); `S` query heads share each of `Hkv` key heads, `rows` is
`S tq`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import mlx.core as mx
import numpy as np

from .tiling import MASKED, Tiling, homes, index


def bias_variants(tiling: Tiling, rpb: mx.array | None) -> mx.array:
    """`[Hkv or 1, V, tk, rows]`: bias and mask of every variant."""
    if rpb is None:
        return tiling.row_mask
    x = mx.maximum(rpb.astype(mx.float32), MASKED / 10)  # above what is not seen
    for axis, (pattern, _) in enumerate(tiling.patterns):  # 2K - 1 of an axis -> V tk tq of it
        x = mx.take(x, index(np.maximum(pattern, 0).ravel()), axis=axis + 1)
    rank = len(tiling.patterns)
    sizes = [pattern.shape for pattern, _ in tiling.patterns]  # (V, tk, tq) of each axis
    x = x.reshape(-1, *itertools.chain(*sizes))  # [H, V0, tk0, tq0, V1, tk1, tq1]
    kinds = [1 + 3 * a + kind for kind in range(3) for a in range(rank)]
    x = x.transpose(0, *kinds)  # [H, V0, V1, tk0, tk1, tq0, tq1]
    x = x.reshape(-1, tiling.sharing, *tiling.mask.shape)  # [Hkv, S, V, tk, tq]
    x = (x + tiling.mask).transpose(0, 2, 3, 1, 4)  # [Hkv, V, tk, S, tq]
    return x.flatten(3)


def variant_sums(tiling: Tiling, tiles: slice, scores: mx.array) -> mx.array:
    """`[h, t, tk, rows] -> [h, variants among the tiles, tk, rows]`."""
    bounds = _runs(tiling.variant[tiles])
    return mx.stack([scores[:, a:b].sum(axis=1) for a, b in bounds], axis=1)


def bias_gradient(tiling: Tiling, parts: Iterable[slice], x: mx.array, batch: int) -> mx.array:
    """`[B * Hkv, variants of the first part, of the second ..., tk, rows] -> [H, 2K - 1 ...]`.

    `parts` are the tiles of each call of `variant_sums`. A variant may go on in the next
    part.
    """
    x = x.reshape(batch, -1, *x.shape[1:]).sum(axis=0)  # [Hkv, variants of all parts, tk, rows]
    variant = [tiling.variant[tiles][a] for tiles in parts for a, _ in _runs(tiling.variant[tiles])]
    x = mx.stack([x[:, a:b].sum(axis=1) for a, b in _runs(np.array(variant))], axis=1)
    x = x.reshape(*x.shape[:3], tiling.sharing, -1)  # [Hkv, V, tk, S, tq]
    x = x.transpose(0, 3, 1, 2, 4)  # [Hkv, S, V, tk, tq]
    rank = len(tiling.patterns)
    sizes = [pattern.shape for pattern, _ in tiling.patterns]  # (V, tk, tq) of each axis
    kinds = [size[kind] for kind in range(3) for size in sizes]
    x = x.reshape(-1, *kinds)  # [H, V0, V1, tk0, tk1, tq0, tq1]
    x = x.transpose(0, *(1 + kind * rank + a for a in range(rank) for kind in range(3)))
    x = x.reshape(-1, *map(math.prod, sizes))  # [H, V0 tk0 tq0, V1 tk1 tq1]
    for axis, (pattern, _) in enumerate(tiling.patterns):  # V tk tq of an axis -> 2K - 1 of it
        table = homes(pattern.ravel(), tiling.hood.bias_shape[axis])  # [2K - 1, n]
        zero = mx.zeros((*x.shape[: axis + 1], 1, *x.shape[axis + 2 :]))  # what fills a row up
        x = mx.take(mx.concatenate([x, zero], axis + 1), index(table), axis=axis + 1)
        x = x.sum(axis=axis + 2)
    return x


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Where equal numbers follow each other: `[3, 3, 5] -> [(0, 2), (2, 3)]`."""
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    return list(itertools.pairwise(cuts))

"""Resizing of feature maps as torch does it: linear interpolation and adaptive pooling."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

FEW_TIMES = 8  # as long: the parts of a cell are computed one by one


def source_positions(old: int, new: int) -> np.ndarray:
    """Where the centers of `new` equal cells lie among the centers of `old` ones.

    Positions before the first center are moved onto it.

    Examples:
        >>> source_positions(2, 4).tolist()
        [0.0, 0.25, 0.75, 1.25]
    """
    return np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)


def sample_linear(x: mx.array, axis: int, positions: np.ndarray) -> mx.array:
    """Values between neighbors along an axis; beyond the last center its value is kept."""
    last = x.shape[axis] - 1
    low = np.minimum(positions.astype(np.int32), last)
    high = np.minimum(low + 1, last)
    shape = [1] * x.ndim
    shape[axis] = len(positions)
    weight = mx.array((positions - low).astype(np.float32)).reshape(shape).astype(x.dtype)
    below, above = (mx.take(x, mx.array(index), axis=axis) for index in (low, high))
    return below + weight * (above - below)


def resize_bilinear(x: mx.array, size: Sequence[int]) -> mx.array:
    """Resize a map `[batch, *spatial, channels]` to `size` by linear interpolation.

    The values of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: pixel
    centers are aligned, borders repeated, and nothing is smoothed when a map shrinks.

    Args:
        x: The map.
        size: The new size of each spatial axis.

    Examples:
        >>> resize_bilinear(mx.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).flatten().tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    for axis, new in enumerate(size, start=1):
        old = x.shape[axis]
        if old and new % old == 0 and 1 < new // old <= FEW_TIMES:
            x = _enlarge(x, axis, new // old)
        elif new != old:
            x = sample_linear(x, axis, source_positions(old, new))
    return x


def _enlarge(x: mx.array, axis: int, factor: int) -> mx.array:
    """An axis a few times as long, to the last bit as `sample_linear` has it.

    Nothing is taken by index: that is slow on a GPU, and its gradient a sum by atomic additions.
    """
    ends = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
    padded = mx.pad(x, ends, mode="edge")
    before, _ = mx.split(padded, [x.shape[axis]], axis)
    _, after = mx.split(padded, [2], axis)
    parts = []
    for position in (np.arange(factor) + 0.5) / factor - 0.5:  # from the center of a cell
        below, step = (before, x - before) if position < 0 else (x, after - x)
        parts.append(below + float(position % 1) * step)
    return mx.flatten(mx.stack(parts, axis + 1), axis, axis + 1)


def cubic_matrix(old: int, new: int, *, antialias: bool = False) -> np.ndarray:
    """`[new, old]`: the weight of each of `old` samples in each of `new` ones.

    The weights of `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` on one
    axis: Keys' kernel with a = -0.75 and borders repeated; with `antialias` a = -0.5, samples
    beyond the borders left out, and a kernel that widens when an axis shrinks.
    """
    center = (np.arange(new) + 0.5) * old / new - 0.5
    if antialias:
        stretch = max(old / new, 1.0)
        away = np.abs(center[:, None] - np.arange(old)) / stretch
        weights = _cubic(away, -0.5)
        normed: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return normed
    first = np.floor(center).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        source = first + tap
        weight = _cubic(np.abs(center - source), -0.75)
        np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), weight)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_twice(
    x: mx.array, axis: int, sizes: tuple[int, int, int], start: int = 0, stop: int | None = None
) -> mx.array:
    """Resize an axis, cut it, resize it again, and make only some places of the result.

    So masks become those of an image: of a map to the padded image that the model saw, without the
    padding, to the image's own size. A band of the result needs no more memory than itself.

    Args:
        x: The map.
        axis: Of the map.
        sizes: The first size, how many of its first places are kept, the second size.
        start: First place of the result.
        stop: End of the result. Default: all of it.

    Examples:
        >>> resize_twice(mx.array([0.0, 1.0]), 0, (4, 3, 6), start=2).tolist()
        [0.1875, 0.375, 0.625, 0.75]
    """
    first, kept, second = sizes
    positions = source_positions(kept, second)[start:stop]
    low = int(positions[0])
    high = min(int(positions[-1]) + 1, kept - 1)
    middle = source_positions(x.shape[axis], first)[low : high + 1]
    return sample_linear(sample_linear(x, axis, middle), axis, positions - low)


class AdaptiveAveragePool(nn.Module):
    """Means over a grid of parts of a map, whatever its size.

    Part i of an axis of n tokens spans `floor(i n / cells)` up to `ceil((i + 1) n / cells)`,
    as in `torch.nn.AdaptiveAvgPool2d`: parts overlap where n is not divisible, and repeat tokens
    where it is smaller than `cells`.

    Args:
        cells: Parts per axis, one number or one per axis.

    Shape:
        - Input: `[batch, height, width, channels]`.
        - Output: `[batch, *cells, channels]`.
    """

    def __init__(self, cells: int | Sequence[int]) -> None:
        super().__init__()
        self.cells = (cells, cells) if isinstance(cells, int) else tuple(cells)

    def __call__(self, x: mx.array) -> mx.array:
        rows, columns = (
            mx.array(_means(*sizes)).astype(x.dtype)
            for sizes in zip(x.shape[1:3], self.cells, strict=True)
        )
        x = rows @ x.flatten(2)  # [B, cells, W C]
        x = mx.unflatten(x, 2, (columns.shape[1], -1))  # [B, cells, W, C]
        return columns @ x

    def _extra_repr(self) -> str:
        return f"cells={self.cells}"


def _means(size: int, cells: int) -> np.ndarray:
    """`[cells, size]`: the weight of each token in each mean."""
    index, token = np.arange(cells)[:, None], np.arange(size)
    first, end = index * size // cells, -((index + 1) * -size // cells)
    inside = (first <= token) & (token < end)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

"""Large maps by windows that overlap: images and volumes that a model cannot see at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise, product

import mlx.core as mx
import numpy as np

# The standard deviation of a window's Gaussian, relative to its size, and its smallest weight.
SIGMA = 0.125
FLOOR = 1e-3
Place = tuple[slice, ...]


def window_starts(size: int, window: int, step: int) -> list[int]:
    """Where windows of an axis begin; the last is moved back to end with the axis.

    Examples:
        >>> window_starts(100, window=40, step=25)
        [0, 25, 50, 60]
    """
    steps = max(0, -(-(size - window) // step))
    return [max(0, min(index * step, size - window)) for index in range(steps + 1)]


def gaussian(window: Sequence[int]) -> np.ndarray:
    """Weights of a window that fall off from its center, at least a thousandth.

    Examples:
        >>> [f"{weight:.3f}" for weight in gaussian([5])]
        ['0.006', '0.278', '1.000', '0.278', '0.006']
    """
    axes = [np.arange(n) - (n - 1) / 2 for n in window]
    bells = [np.exp(-0.5 * (x / (SIGMA * len(x))) ** 2) for x in axes]
    weights: np.ndarray = np.maximum(reduce(np.multiply.outer, bells), FLOOR)
    return weights.astype(np.float32)


def blended_rows(
    predict: Callable[[Place], mx.array],
    size: Sequence[int],
    window: Sequence[int],
    step: Sequence[int],
    weights: Callable[[Sequence[int]], np.ndarray] = np.ones,
    each: Callable[[int, int], object] | None = None,
) -> Iterator[np.ndarray]:
    """Predictions averaged over all windows, row by row of the first axis.

    No more is held than one window is deep, so that memory does not grow with the first axis.

    Args:
        predict: Given the place of a window, its predictions `[*window, classes]`.
        size: Of the map.
        window: Of the windows; on an axis that is smaller, the axis' size.
        step: From one window to the next, per axis.
        weights: Given the size of a window, the weights `[*window]` of its predictions.
        each: Called after each window with the number of those done and of all.

    Yields:
        `[*size[1:], classes]` in float32, `size[0]` times.
    """
    window = [min(n, w) for n, w in zip(size, window, strict=True)]
    starts = [window_starts(*sizes) for sizes in zip(size, window, step, strict=True)]
    weight = weights(window).astype(np.float32)[..., None]
    total, count = np.zeros(()), np.zeros((window[0], *size[1:], 1), np.float32)
    places = list(product(*starts[1:]))
    for index, (top, following) in enumerate(pairwise([*starts[0], size[0]])):
        for done, corner in enumerate(places, index * len(places) + 1):
            place = tuple(slice(s, s + n) for s, n in zip((top, *corner), window, strict=True))
            values = np.array(predict(place).astype(mx.float32))
            if not total.shape:
                total = np.zeros((*count.shape[:-1], values.shape[-1]), np.float32)
            here = (slice(None), *place[1:])
            total[here] += values * weight
            count[here] += weight
            if each is not None:
                each(done, len(places) * len(starts[0]))
        rows = following - top  # which no further window sees
        yield from total[:rows] / count[:rows]
        for sums in (total, count):
            sums[:-rows] = sums[rows:].copy()
            sums[-rows:] = 0

"""Zero-padding of small feature maps and the crop that undoes it."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def pad_to(x: mx.array, minimum: Sequence[int]) -> mx.array:
    """Zero-pads the end of the spatial axes of `[batch, *spatial, channels]` to `minimum`."""
    missing = [max(0, m - n) for m, n in zip(minimum, x.shape[1:-1], strict=True)]
    if not any(missing):
        return x
    return mx.pad(x, [(0, 0), *((0, n) for n in missing), (0, 0)])


def pad_to_multiple(x: mx.array, multiple: int) -> mx.array:
    """Zero-pads the end of the spatial axes to multiples of `multiple`."""
    return pad_to(x, [-(-n // multiple) * multiple for n in x.shape[1:-1]])


def crop(x: mx.array, size: Sequence[int]) -> mx.array:
    """Keeps the first `size` tokens of the axes that follow the batch."""
    if x.shape[1 : 1 + len(size)] == tuple(size):
        return x
    return x[(slice(None), *(slice(n) for n in size))]

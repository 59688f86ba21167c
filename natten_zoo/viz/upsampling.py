"""Feature maps as pictures, before and after NAF brings them to the image's size."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from PIL import Image

from ..data.finite import check_finite

# Pixels between the pictures.
_GAP = 8


def before_after(
    image: np.ndarray, features: mx.array, upsampled: mx.array, *, outliers: float = 0.01
) -> Image.Image:
    """The image, its features and the upsampled features side by side, at the image's size.

    Colors are the first three principal components of the features before upsampling, the same
    for both maps: what is alike has the same color.

    Args:
        image: `[height, width, 3]` of uint8.
        features: `[rows, columns, channels]`, three channels or more.
        upsampled: `[height', width', channels]`, what [`natten_zoo.models.NAF`][] made of it.
        outliers: Share of the values at either end that take the end's color.

    Raises:
        ValueError: A shape is another, or a map is not finite.
    """
    shapes = image.shape, features.shape, upsampled.shape
    if any(len(shape) != 3 for shape in shapes) or shapes[0][2] != 3 or shapes[1][2] < 3:
        raise ValueError(
            "[before_after] 'image' must be [height, width, 3], the maps [rows, columns, 3 "
            f"channels or more], but got {', '.join(map(str, shapes))}."
        )
    if shapes[1][2] != shapes[2][2]:
        raise ValueError(
            "[before_after] 'upsampled' must have the channels of 'features' but got "
            f"{shapes[2][2]} and {shapes[1][2]}."
        )
    for name, values in (("features", features), ("upsampled", upsampled)):
        check_finite("before_after", name, np.array(values.astype(mx.float32)))
    size = image.shape[1], image.shape[0]
    maps = principal_colors([features, upsampled], outliers)
    pictures = [Image.fromarray(image)]
    pictures += [Image.fromarray(x).resize(size, Image.Resampling.NEAREST) for x in maps]
    page = Image.new("RGB", (3 * size[0] + 2 * _GAP, size[1]), "white")
    for index, picture in enumerate(pictures):
        page.paste(picture, (index * (size[0] + _GAP), 0))
    return page


def principal_colors(maps: Sequence[mx.array], outliers: float = 0.01) -> list[np.ndarray]:
    """Maps `[rows, columns, channels]` as colors, by the first map's principal components."""
    values = [np.array(x.astype(mx.float32)) for x in maps]
    flat = values[0].reshape(-1, values[0].shape[-1])
    mean = flat.mean(axis=0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:3].T  # [channels, 3]
    low, high = np.quantile((flat - mean) @ axes, [outliers, 1 - outliers], axis=0)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    return [
        (255 * np.clip(((x - mean) @ axes - low) / span, 0, 1)).round().astype(np.uint8)
        for x in values
    ]

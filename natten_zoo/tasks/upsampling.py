"""Features of a photo at the photo's resolution: a backbone's, brought there by NAF."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from PIL import Image

from ..configs.record import IMAGENET_MEAN, IMAGENET_STD
from ..data.finite import check_finite
from ..data.reading import ImageSource, read_image
from ..models import NAF, DINOv2


@dataclass(frozen=True)
class Upsampled:
    """Features before and after.

    Attributes:
        image: What was looked at, `[height, width, 3]` of uint8: the photo, resized.
        features: The backbone's, `[rows, columns, channels]`.
        upsampled: NAF's, `[*size, channels]`.
    """

    image: np.ndarray
    features: mx.array
    upsampled: mx.array


def upsample_features(
    naf: NAF,
    backbone: DINOv2,
    photo: ImageSource,
    *,
    short_side: int = 448,
    scale: float = 1.0,
    block: int | None = None,
) -> Upsampled:
    """Features of a photo, at the resolution of its pixels.

    Args:
        naf: The upsampler.
        backbone: What makes the features; it looks at the photo with the mean and deviation of its
            record.
        photo: A file, a Pillow image or an array.
        short_side: What the photo's short side is resized to first. Both sides become multiples of
            the backbone's patches.
        scale: Of the result, relative to the image that was looked at.
        block: The block of the backbone after which the features are taken, from 0; negative ones
            count from the end. Default: the last, with the norm that follows.

    Raises:
        ImageError: The photo cannot be read.
        ValueError: An argument is out of range, or the photo too small for NAF's windows.
    """
    patch, depth = backbone.config.patch_size, backbone.config.depth
    least = patch * naf.config.kernel_size
    if short_side < least:
        raise ValueError(
            f"[upsample_features] 'short_side' must be at least {least}, the cells of a "
            f"window, but got {short_side}."
        )
    if not 0 < scale <= 8:
        raise ValueError(f"[upsample_features] 'scale' must be in 0..8 but got {scale}.")
    if block is not None and not -depth <= block < depth:
        raise ValueError(
            f"[upsample_features] 'block' must be in {-depth}..{depth - 1} but got {block}."
        )
    image = _resized(read_image(photo), short_side, patch)
    record = backbone.record
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if record is None else (record.mean, record.std)
    pixels = np.asarray(image)
    x = mx.array((pixels / 255 - np.array(mean)) / np.array(std), mx.float32)[None]
    features = backbone(x) if block is None else backbone.features(x)[block]
    cells = features.shape[1:3]
    size = [
        max(round(side * scale), cell) for side, cell in zip(pixels.shape[:2], cells, strict=True)
    ]
    upsampled = naf(x, features.astype(mx.float32), size)
    mx.eval(features, upsampled)
    check_finite("upsample_features", "features", np.array(features.astype(mx.float32)))
    return Upsampled(pixels, features[0], upsampled[0])


def _resized(image: Image.Image, short_side: int, patch: int) -> Image.Image:
    """The image with sides of whole patches, its short one of as many as go into a length."""
    scale = short_side / min(image.size)
    width, height = (max(round(side * scale / patch), 1) * patch for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)

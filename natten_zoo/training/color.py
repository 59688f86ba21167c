"""Color changes and RandAugment, on the device, with one draw per image.

Images are float32 `[B, H, W, C]` in 0..1 with one or three channels.
"""

from __future__ import annotations

import math

import mlx.core as mx

LUMA = (0.299, 0.587, 0.114)


def _factor(images: mx.array, strength: float) -> mx.array:
    return mx.random.uniform(1 - strength, 1 + strength, (images.shape[0], 1, 1, 1))


def _gray(images: mx.array) -> mx.array:
    if images.shape[-1] == 1:
        return images
    return (images * mx.array(LUMA)).sum(-1, keepdims=True)


def brightness(images: mx.array, factor: mx.array) -> mx.array:
    """Scale the images; a factor of 0 is black."""
    return mx.clip(images * factor, 0, 1)


def contrast(images: mx.array, factor: mx.array) -> mx.array:
    """Move pixels away from, or toward, the image's mean gray."""
    mean = _gray(images).mean((1, 2, 3), keepdims=True)
    return mx.clip(mean + factor * (images - mean), 0, 1)


def saturation(images: mx.array, factor: mx.array) -> mx.array:
    """Move pixels away from, or toward, their own gray."""
    gray = _gray(images)
    return mx.clip(gray + factor * (images - gray), 0, 1)


def solarize(images: mx.array, threshold: mx.array) -> mx.array:
    """Invert pixels above the threshold."""
    return mx.where(images >= threshold, 1 - images, images)


def posterize(images: mx.array, levels: mx.array) -> mx.array:
    """Keep that many gray levels."""
    return mx.floor(images * levels) / levels


def affine(images: mx.array, angle: mx.array, shear: mx.array, shift: mx.array) -> mx.array:
    """Rotate by `angle`, shear horizontally and shift (all `[B]`), nearest pixel, black outside."""
    batch, rows, columns, channels = images.shape
    y = (mx.arange(rows) - (rows - 1) / 2)[None, :, None]  # [1, H, 1]
    x = (mx.arange(columns) - (columns - 1) / 2)[None, None, :]  # [1, 1, W]
    cos, sin = mx.cos(angle)[:, None, None], mx.sin(angle)[:, None, None]
    shear, shift = shear[:, None, None], shift[:, None, None]
    from_x = cos * x - sin * y + shear * y + shift * columns + (columns - 1) / 2
    from_y = sin * x + cos * y + (rows - 1) / 2  # [B, H, W]
    column, row = mx.round(from_x).astype(mx.int32), mx.round(from_y).astype(mx.int32)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    index = mx.clip(row, 0, rows - 1) * columns + mx.clip(column, 0, columns - 1)
    flat = images.reshape(batch, rows * columns, channels)
    moved = mx.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1)
    return mx.where(inside[..., None], moved.reshape(images.shape), 0)


def jitter_color(images: mx.array, strength: float) -> mx.array:
    """Random brightness, contrast and (for color images) saturation."""
    images = brightness(images, _factor(images, strength))
    images = contrast(images, _factor(images, strength))
    if images.shape[-1] == 1:
        return images
    return saturation(images, _factor(images, strength))


def rand_augment(images: mx.array, magnitude: float, operations: int = 2) -> mx.array:
    """Apply `operations` random changes of strength `magnitude` (0..1) to each image.

    Follows RandAugment (Cubuk et al. 2020, arXiv:1909.13719) with the operations that have a
    batched form. Every operation is computed and each image keeps the one it drew.
    """
    batch = images.shape[0]
    for _ in range(operations):
        sign = mx.where(mx.random.uniform(shape=(batch,)) < 0.5, -1.0, 1.0)
        gain = (1 + 0.9 * magnitude * sign)[:, None, None, None]
        still, bend = mx.zeros((batch,)), magnitude * sign
        choices = [
            images,
            brightness(images, gain),
            contrast(images, gain),
            saturation(images, gain),
            solarize(images, mx.array(1.0 - magnitude + 1e-3)),
            posterize(images, mx.array(2.0 ** (8 - round(4 * magnitude)))),
            affine(images, bend * math.radians(30), still, still),
            affine(images, still, bend * 0.3, still),
            affine(images, still, still, bend * 0.3),
        ]
        drawn = mx.random.randint(0, len(choices), (batch, 1, 1, 1))
        for index, changed in enumerate(choices):
            images = mx.where(drawn == index, changed, images)
    return images

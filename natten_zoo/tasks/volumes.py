"""Masks of volumes: a class for every voxel of a CT, an MRI or a stack of images, at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..configs.record import Record
from ..data.finite import check_finite
from ..data.labels import Color, class_colors, output_names
from ..data.volumes import Volume, VolumeError, VolumeSource, read_volume, write_mask
from ..layers.resize import resize_bilinear, source_positions
from ..models.na_unetr import NAUNETR
from .pictures import classes_found, legend
from .sliding import Place, blended_rows, gaussian

# Side of the windows of a model whose record does not tell.
WINDOW = 96
# Pixels between the slices of a picture.
GAP = 4


@dataclass(frozen=True)
class VolumeSegmentation:
    """A class for every voxel of a volume.

    Attributes:
        volume: The volume.
        mask: The index of the class of each voxel, `[X, Y, Z]`, axes as in `volume.voxels`.
        names: Of all classes of the model.
        colors: Of all classes of the model.
    """

    volume: Volume
    mask: np.ndarray
    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def classes(self) -> list[dict[str, Any]]:
        """The classes found, the largest first: class, index, color, voxels, mm3 and share."""

        def measure(count: int) -> dict[str, Any]:
            return {"voxels": count, "mm3": float(f"{count * self.volume.voxel_volume:.6g}")}

        return classes_found(self.mask, self.names, self.colors, measure)

    def save(self, path: VolumeSource) -> None:
        """Write the mask on the grid of the volume's file, as NIfTI."""
        write_mask(path, self.mask, self.volume)

    def picture(self, opacity: float = 0.55, height: int = 320) -> Image.Image:
        """Three slices through the middle of what was found, tinted, with a legend on the right.

        Seen from the left, from the front and from below, as radiologists look: the patient's
        right is on the left. Class 0, the background, is not tinted.
        """
        voxels = self.volume.voxels.mean(axis=-1)
        low, high = np.percentile(voxels, (1, 99))
        gray = ((voxels - low) / max(float(high - low), 1e-6)).clip(0, 1) * 255
        slices = [self._slice(gray, axis, opacity, height) for axis in range(3)]
        tinted = [entry for entry in self.classes() if entry["index"]]
        parts = [*slices, legend(tinted, height)] if tinted else slices
        page = Image.new("RGB", (sum(p.width + GAP for p in parts) - GAP, height), "white")
        left = 0
        for part in parts:
            page.paste(part, (left, 0))
            left += part.width + GAP
        return page

    def _slice(self, gray: np.ndarray, axis: int, opacity: float, height: int) -> Image.Image:
        counts = (self.mask > 0).sum(axis=tuple(other for other in range(3) if other != axis))
        weights = counts if counts.any() else np.ones(len(counts))
        index = int(np.average(np.arange(len(counts)), weights=weights))
        flat, classes = (np.take(x, index, axis=axis) for x in (gray, self.mask))
        tints = np.array(self.colors, np.float32)[classes]
        share = opacity * (classes > 0)[..., None]
        pixels = flat[..., None] * (1 - share) + tints * share  # [across, up, 3]
        image = Image.fromarray(pixels[::-1, ::-1].swapaxes(0, 1).round().astype(np.uint8))
        across, up = (self.volume.spacing[other] for other in range(3) if other != axis)
        width = max(1, round(height * image.width * across / (image.height * up)))
        return image.resize((width, height), Image.Resampling.BILINEAR)


def segment_volume(
    model: NAUNETR,
    volume: VolumeSource | Volume,
    *,
    window: int | Sequence[int] | None = None,
    overlap: float = 0.5,
    fill: float | None = None,
    affine: str | None = None,
    each: Callable[[int, int], object] | None = None,
) -> VolumeSegmentation:
    """Find the class of every voxel of a volume.

    The model looks at overlapping windows, whose logits are averaged, weighted by a Gaussian; they
    are interpolated from the model's voxel size to the volume's own. Besides the volume and the
    mask, memory holds the logits of one window's depth along the volume's longest axis.

    Args:
        model: The model, in evaluation mode.
        volume: A NIfTI file, or what [`natten_zoo.data.volumes.read_volume`][] made of one.
        window: Side of the windows in voxels of the model, one number or one per axis. Default: the
            record's `input_size`. A smaller volume is looked at as it is.
        overlap: Share of a window that the next one sees again, in [0, 1).
        fill: What stands for voxels that are no numbers. Default: they are an error.
        affine: Which part of a header that contradicts itself is right, `sform`, `qform` or
            `pixdim`. Default: that is an error.
        each: Called after each window with the number of those done and of all.

    Raises:
        VolumeError: The volume cannot be read or has other channels than the model.
        ImportError: nibabel is not installed.
        ValueError: `window` or `overlap` is out of range, or the model has no classifier.
    """
    if not model.config.num_classes:
        raise ValueError("[segment_volume] 'model' must have a classifier but has none.")
    if not 0 <= overlap < 1:
        raise ValueError(f"[segment_volume] 'overlap' must be in [0, 1) but got {overlap}.")
    record, sides = model.record, _sides(model, window)
    if not isinstance(volume, Volume):
        volume = read_volume(volume, fill=fill, affine=affine)
    channels = volume.voxels.shape[-1]
    if channels != model.config.in_chans:
        raise VolumeError(
            f"[segment_volume] the volume must have {model.config.in_chans} channels, as the model "
            f"expects, but has {channels}."
        )
    x = prepare(volume, record)
    # Rows go along the longest axis, so that the fewest logits are held.
    axis = int(np.argmax(x.shape[:3]))
    rows = logit_rows(model, x, axis, sides, overlap, each)
    size = np.moveaxis(np.empty(volume.size, bool), axis, 0).shape
    mask = np.empty(size, np.uint8 if model.config.num_classes <= 256 else np.uint16)
    positions = source_positions(x.shape[axis], size[0])
    for index, row in enumerate(_between(rows, positions, x.shape[axis])):
        check_finite("segment_volume", "logits", row)
        logits = resize_bilinear(mx.array(row)[None], size[1:])[0]
        mask[index] = np.array(mx.argmax(logits, axis=-1))
    labels = None if record is None else record.classes, model.config.num_classes
    mask = np.ascontiguousarray(np.moveaxis(mask, 0, axis))
    return VolumeSegmentation(volume, mask, output_names(*labels), class_colors(*labels))


def _sides(model: NAUNETR, window: int | Sequence[int] | None) -> tuple[int, ...]:
    side = (model.record and model.record.input_size) or WINDOW if window is None else window
    sides = (side,) * 3 if isinstance(side, int) else tuple(side)
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(
            f"[segment_volume] 'window' must be a positive number or three but got {window}."
        )
    return sides


def prepare(volume: Volume, record: Record | None) -> np.ndarray:
    """A volume's voxels as a model wants them: their values, and the size of each."""
    x = scale_intensity(volume.voxels, record)
    if record is None or record.spacing is None:
        return x
    pairs = zip(volume.size, volume.spacing, record.spacing, strict=True)
    size = [max(1, round(count * own / wanted)) for count, own, wanted in pairs]
    return np.array(resize_bilinear(mx.array(x)[None], size)[0])


def scale_intensity(voxels: np.ndarray, record: Record | None) -> np.ndarray:
    """Values from a record's range to 0..1, or each channel to mean 0 and variance 1."""
    if record is not None and record.intensity is not None:
        low, high = record.intensity
        return ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)
    mean, std = (f(voxels, axis=(0, 1, 2), dtype=np.float64) for f in (np.mean, np.std))
    return ((voxels - mean) / np.maximum(std, 1e-6)).astype(np.float32)


def logit_rows(
    model: NAUNETR,
    x: np.ndarray,
    axis: int,
    window: Sequence[int],
    overlap: float = 0.5,
    each: Callable[[int, int], object] | None = None,
) -> Iterator[np.ndarray]:
    """Blended logits of prepared voxels `[X, Y, Z, channels]`, row by row of an axis."""
    x = np.moveaxis(x, axis, 0)

    def predict(place: Place) -> mx.array:
        cut = mx.array(x[place]).moveaxis(0, axis)
        logits: mx.array = model(cut[None].astype(model.patch_embed.weight.dtype))[0]
        return logits.moveaxis(axis, 0)

    order = [axis, *(other for other in range(3) if other != axis)]
    sides = [window[other] for other in order]
    steps = [max(1, int(side * (1 - overlap))) for side in sides]
    return blended_rows(predict, x.shape[:3], sides, steps, gaussian, each)


def _between(rows: Iterator[np.ndarray], positions: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Rows at rising positions between `count` given ones, holding no more than two of them."""
    newest, above = 0, next(rows)
    below = above
    for position in positions.tolist():
        low = min(int(position), count - 1)
        while newest < min(low + 1, count - 1):
            newest, below, above = newest + 1, above, next(rows)
        first = above if low == newest else below
        yield first + (position - low) * (above - first)

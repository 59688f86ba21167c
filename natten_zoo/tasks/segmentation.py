"""Masks of images: a class for every pixel, at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from ..data import Preprocess, read_image
from ..data.finite import check_finite
from ..data.labels import Color, class_colors, output_names
from ..data.reading import ImageSource
from ..layers.resize import resize_bilinear, resize_twice
from ..models.upernet import UPerNet
from .pictures import classes_found, tint, with_legend
from .sliding import Place, blended_rows

# Logits at the image's size are made in bands of rows of at most this many numbers.
_BAND = 2**24


@dataclass(frozen=True)
class Segmentation:
    """A class for every pixel of an image.

    Attributes:
        image: The image, `[H, W, 3]` (gray: `[H, W]`) of uint8.
        mask: The index of the class of each pixel, `[H, W]`.
        names: Of all classes of the model.
        colors: Of all classes of the model.
    """

    image: np.ndarray
    mask: np.ndarray
    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def classes(self) -> list[dict[str, Any]]:
        """The classes found, the largest first: class, index, color, pixels and share of them."""
        return classes_found(self.mask, self.names, self.colors, lambda count: {"pixels": count})

    def mask_image(self) -> Image.Image:
        """The mask as an image whose pixels are class indices; shown in the classes' colors."""
        if len(self.names) > 256:
            return Image.fromarray(self.mask.astype(np.uint16))
        image = Image.fromarray(self.mask.astype(np.uint8))
        image.putpalette([value for color in self.colors for value in color])
        return image

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The image tinted by the classes' colors, with a legend of them on the right."""
        tints = np.array(self.colors, np.float32)[self.mask]
        return with_legend(Image.fromarray(tint(self.image, tints, opacity)), self.classes())


def segment(
    model: UPerNet,
    image: ImageSource,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    sliding_window: bool = False,
) -> Segmentation:
    """Find the class of every pixel of an image, as the published figures were measured.

    The image's short side is resized to the model's input size (its long side to at most four
    times that); logits are resized to the image's own size. Memory beyond them is bounded, however
    large the image is.

    Args:
        model: The model, in evaluation mode.
        image: A path, a Pillow image or an array.
        scales: Sizes to look at, relative to the model's; probabilities are averaged.
        flip: Also look at mirror images.
        sliding_window: Look at overlapping squares of the model's input size instead of at the
            whole image at once, and average the logits where they overlap.

    Raises:
        ImageError: The image cannot be read.
        ValueError: There is no scale, or one is not positive.

    Examples:
        >>> from natten_zoo.models import NATConfig, UPerNetConfig
        >>> body = NATConfig(8, depths=(1, 1), num_heads=(1, 2), kernel_size=3)
        >>> model = UPerNet(UPerNetConfig(body, channels=8, num_classes=3)).eval()
        >>> segment(model, np.zeros((30, 20, 3), np.uint8), scales=(0.1,)).mask.shape
        (30, 20)
    """
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"[segment] 'scales' must be positive numbers but got {scales}.")
    record = model.record
    prepare = Preprocess(size=512) if record is None else Preprocess.from_record(record)
    pixels = np.asarray(read_image(image, prepare.channels))
    x = mx.array(prepare.normalize(pixels))[None]  # [1, H, W, C]
    views = []
    for scale in scales:
        resized = resize_bilinear(x, prepare.fit(pixels.shape[:2], scale))
        views.append(_look(model, resized, prepare.size if sliding_window else None))
        if flip:
            mirrored = _look(model, resized[:, :, ::-1], prepare.size if sliding_window else None)
            views.append(_View(mirrored.logits[:, :, ::-1], mirrored.size))
    mask = _classify(views, pixels.shape[:2])
    labels = None if record is None else record.classes, model.config.num_classes
    return Segmentation(pixels, mask, output_names(*labels), class_colors(*labels))


class _View(NamedTuple):
    """Logits `[1, h, w, classes]` of an image that was resized to `size`."""

    logits: mx.array
    size: Sequence[int]


def _look(model: UPerNet, x: mx.array, window: int | None) -> _View:
    size = x.shape[1:3]
    logits = model.decode(x) if window is None else _slide(model, x, window)
    mx.eval(logits)
    return _View(logits, size)


def _slide(model: UPerNet, x: mx.array, window: int) -> mx.array:
    """Mean logits `[1, H, W, classes]` of squares that overlap by a third."""
    step = max(1, window * 2 // 3)

    def predict(place: Place) -> mx.array:
        return model(x[(slice(None), *place)])[0]

    rows = blended_rows(predict, x.shape[1:3], (window, window), (step, step))
    return mx.array(np.stack(list(rows)))[None]


def _classify(views: Sequence[_View], size: tuple[int, int]) -> np.ndarray:
    """The most probable class of each pixel of an image of `size`."""
    height, width = size
    mask = np.empty(size, np.int32)
    rows = max(1, _BAND // (width * views[0].logits.shape[-1]))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        bands = [_band(view, size, start, stop).astype(mx.float32) for view in views]
        probabilities = mx.stack([mx.softmax(band, axis=-1) for band in bands]).sum(axis=0)
        check_finite("segment", "probabilities", np.array(probabilities.sum(axis=-1)))
        mask[start:stop] = np.array(mx.argmax(probabilities, axis=-1)[0])
    return mask


def _band(view: _View, size: tuple[int, int], start: int, stop: int) -> mx.array:
    """Some rows of the logits, resized to their view's size and then to the image's."""
    height, width = view.size
    x = resize_twice(view.logits, 1, (height, height, size[0]), start, stop)
    return resize_twice(x, 2, (width, width, size[1]))

"""Segments of an image: things one by one and stuff, with pictures and COCO's files of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ..data.labels import Color, class_colors
from .mask_rules import Segment
from .pictures import tint, with_legend
from .rle import mask_box, runs_of


@dataclass(frozen=True)
class Segments:
    """What a universal model found in an image.

    Attributes:
        image: The image, `[H, W, 3]` (gray: `[H, W]`) of uint8.
        task: `"panoptic"` (no pixel is in two segments) or `"instance"` (they may overlap).
        segments: Those found, the best first for instances.
        names: Of all classes of the model.
        colors: Of all classes of the model.
        numbers: The number of the segment of each pixel, `[H, W]`; None for instances that
            overlap, whose masks are in the segments.
    """

    image: np.ndarray
    task: str
    segments: tuple[Segment, ...]
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    numbers: np.ndarray | None = None

    def mask(self, segment: Segment) -> np.ndarray:
        """Its pixels, `[H, W]` of booleans."""
        if segment.runs is not None:
            return segment.runs.mask()
        return np.asarray(self.numbers == segment.id)

    @cached_property
    def map(self) -> np.ndarray:
        """The number of the segment that is on top at each pixel, `[H, W]`; 0 for none."""
        if self.numbers is not None:
            return self.numbers
        result = np.zeros(self.image.shape[:2], np.int32)
        for segment in reversed(self.segments):  # the best last, on top
            result[self.mask(segment)] = segment.id
        return result

    def at(self, x: int, y: int) -> list[Segment]:
        """The segments at a pixel, the one on top first."""
        return [segment for segment in self.segments if self.mask(segment)[y, x]]

    def describe(self) -> list[dict[str, Any]]:
        """The segments as plain data: id, class, index, score, color, pixels, share, box."""
        return [
            {
                "id": segment.id,
                "class": self.names[segment.label],
                "index": segment.label,
                "is_thing": segment.is_thing,
                "score": round(segment.score, 6),
                "color": list(color),
                "pixels": segment.area,
                "share": round(segment.area / math.prod(self.image.shape[:2]), 6),
                "box": list(box),
            }
            for segment, color, box in zip(self.segments, self._tints(), self._boxes(), strict=True)
        ]

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's instance results: class, box, score and the mask as runs, one per segment.

        `category_id` is the model's index of the class, from 0; a data set's own numbers differ.
        """
        return [
            {
                "category_id": segment.label,
                "category": self.names[segment.label],
                "bbox": list(box),
                "score": round(segment.score, 6),
                "segmentation": (segment.runs or runs_of(self.mask(segment))).to_coco(),
            }
            for segment, box in zip(self.segments, self._boxes(), strict=True)
        ]

    def to_panoptic(self, file_name: str) -> dict[str, Any]:
        """COCO's panoptic annotation, which goes with [`mask_image`][] in `file_name`."""
        return {
            "file_name": file_name,
            "segments_info": [
                {
                    "id": segment.id,
                    "category_id": segment.label,
                    "category": self.names[segment.label],
                    "isthing": int(segment.is_thing),
                    "iscrowd": 0,
                    "score": round(segment.score, 6),
                    "area": segment.area,
                    "bbox": list(box),
                }
                for segment, box in zip(self.segments, self._boxes(), strict=True)
            ],
        }

    def mask_image(self) -> Image.Image:
        """[`map`][] as COCO's panoptic PNG: number = red + 256 green + 65536 blue."""
        return number_image(self.map)

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The image tinted by segment, outlined, with a legend of them on the right."""
        tints = np.zeros((*self.image.shape[:2], 3), np.uint8)
        tinted = np.zeros(self.image.shape[:2], bool)
        for segment, color in zip(self.segments, self._tints(), strict=True):
            here = self.map == segment.id
            tints[here], tinted[here] = color, True
        picture = tint(self.image, tints, tinted * np.float32(opacity))
        picture[edges(self.map)] = 255
        rows = [
            {**entry, "class": f"{entry['class']} {entry['score']:.0%}"}
            for entry in sorted(self.describe(), key=lambda entry: -entry["pixels"])
        ]
        return with_legend(Image.fromarray(picture), rows)

    def _tints(self) -> Iterator[Color]:
        """A color for each segment: things differ, stuff has its class' color."""
        own = class_colors(None, len(self.segments))
        for segment, color in zip(self.segments, own, strict=True):
            yield color if segment.is_thing else self.colors[segment.label]

    def _boxes(self) -> Iterator[Sequence[int]]:
        return (mask_box(self.mask(segment)) for segment in self.segments)


def number_image(numbers: np.ndarray) -> Image.Image:
    """Numbers `[H, W]` below 2^24 as colors: number = red + 256 green + 65536 blue."""
    parts = [(numbers >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    return Image.fromarray(np.stack(parts, axis=-1))


def edges(numbers: np.ndarray) -> np.ndarray:
    """Pixels of a map whose right or lower neighbor has another number, `[H, W]` of booleans.

    Examples:
        >>> edges(np.array([[1, 1, 2]]))
        array([[False,  True, False]])
    """
    result = np.zeros(numbers.shape, bool)
    result[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    result[:-1] |= numbers[:-1] != numbers[1:]
    return result

"""From an image to what a model was trained to see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..configs.record import Record
from ..configs.tasks import Task
from .finite import check_finite
from .processor import read_processor
from .reading import ImageSource, read_image

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# Only the middle of a strip longer than this many times its width is resized: the rest would
# be cut off anyway, and a 1 x 10000 image would grow to a gigabyte first.
_LONGEST = 20
# An image of this many pixels a side takes 200 MB as the model gets it.
LARGEST_SIDE = 4096
# The long side of an image that keeps its shape is at most this many short sides, by default.
_LONGEST_WHOLE = 4


@dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalizes one image: `(pixels / 255 - mean) / std`.

    Two conventions are in use for the same weights. The authors' evaluation resizes the short
    side to `floor(size / crop_pct)` and cuts out the center (224 of 256 with `crop_pct`
    0.875); published accuracies belong to it. Hugging Face's processor squashes the whole image
    to a square.

    Args:
        size: Height and width of the result; with `whole` its short side.
        crop_pct: The part of the short side that is kept, in (0, 1].
        crop_mode: `center` (the authors' evaluation), `squash` (no crop at all) or `whole`
            (the image keeps its shape, its long side at most `longest`; for masks).
        interpolation: `bicubic`, `bilinear`, `lanczos` or `nearest`, antialiased.
        mean: What is subtracted, per channel; three give a color image, one a gray one.
        std: What the difference is divided by, per channel.
        longest: Pixels of the long side with `whole`. Default: four times `size`.

    Examples:
        >>> import numpy as np
        >>> photo = np.zeros((480, 640, 3), dtype=np.uint8)
        >>> Preprocess()(photo).shape
        (224, 224, 3)
        >>> Preprocess(size=28, crop_pct=1.0, mean=(0.5,), std=(0.5,))(photo).shape
        (28, 28, 1)
    """

    size: int = 224
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    longest: int | None = None

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"[Preprocess] 'size' must be positive but got {self.size!r}.")
        if self.size > LARGEST_SIDE:
            raise ValueError(
                f"[Preprocess] 'size' must be at most {LARGEST_SIDE} pixels but got {self.size}."
            )
        if self.longest is not None and (type(self.longest) is not int or self.longest < self.size):
            raise ValueError(
                f"[Preprocess] 'longest' must be 'size', {self.size}, or more but got "
                f"{self.longest}."
            )
        for name, values in (
            ("crop_pct", (self.crop_pct,)),
            ("mean", self.mean),
            ("std", self.std),
        ):
            if not isinstance(values, tuple) or not all(map(_is_number, values)):
                raise ValueError(f"[Preprocess] '{name}' must be numbers but got {values!r}.")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"[Preprocess] 'crop_pct' must be in (0, 1] but got {self.crop_pct}.")
        if self.crop_mode not in ("center", "squash", "whole"):
            raise ValueError(
                "[Preprocess] 'crop_mode' must be 'center', 'squash' or 'whole' but got "
                f"'{self.crop_mode}'."
            )
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"[Preprocess] 'interpolation' must be one of {', '.join(_FILTERS)} "
                f"but got '{self.interpolation}'."
            )
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or 0 in self.std:
            raise ValueError(
                "[Preprocess] 'mean' and 'std' must have one value per channel, 1 or 3, and no "
                f"'std' may be zero, but got {self.mean} and {self.std}."
            )

    @property
    def channels(self) -> int:
        """3 for color, 1 for gray."""
        return len(self.mean)

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's name of the filter."""
        return _FILTERS[self.interpolation]

    @property
    def short_side(self) -> int:
        """To how many pixels the short side is resized before the center is cut out."""
        return math.floor(self.size / self.crop_pct)

    def __str__(self) -> str:
        square = f"{self.size} x {self.size}"
        target = {
            "center": f"the short side to {self.short_side}",
            "squash": f"to {square}",
            "whole": f"the short side to {self.size}"
            + (f", the long one to {self.longest} at most" if self.longest else ""),
        }[self.crop_mode]
        crop = f", crop the center {square}" if self.crop_mode == "center" else ""
        values = f"divide by 255, subtract {list(self.mean)}, divide by {list(self.std)}"
        return f"resize {target} ({self.interpolation}){crop}, {values}"

    def __call__(self, image: ImageSource) -> mx.array:
        """Reads and transforms one image.

        Args:
            image: A path, a Pillow image or an array; see [`read_image`][].

        Returns:
            `[size, size, channels]` in float32; with `whole` `[height, width, channels]`.
        """
        return mx.array(self.to_numpy(image))

    def to_numpy(self, image: ImageSource) -> np.ndarray:
        """The same as a NumPy array, for worker threads."""
        pixels = np.asarray(self.crop(read_image(image, self.channels)))
        return self.normalize(pixels)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in 0..255, gray without a channel axis, as the model takes them."""
        pixels = pixels.astype(np.float32).reshape(*pixels.shape[:2], self.channels)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (pixels / 255 - mean) / std

    def crop(self, image: Image.Image) -> Image.Image:
        """The part of an image that the model sees, resized.

        Rounding is torchvision's: `Resize(floor(size / crop_pct))` and `CenterCrop(size)`.
        """
        if self.crop_mode == "squash":
            return image.resize((self.size, self.size), self.resample)
        if self.crop_mode == "whole":
            return image.resize(self.fit(image.size), self.resample)
        image = _center(image, [min(n, _LONGEST * min(image.size)) for n in image.size])
        size = [int(self.short_side * n / min(image.size)) for n in image.size]
        return _center(image.resize(size, self.resample), (self.size, self.size))

    def fit(self, size: Sequence[int], scale: float = 1.0) -> tuple[int, int]:
        """A size that keeps its shape, its short side resized, rounded as mmsegmentation does."""
        side = max(1, int(self.size * scale))
        longest = _LONGEST_WHOLE * side if self.longest is None else int(self.longest * scale)
        factor = min(side / min(size), longest / max(size))
        first, second = (max(1, int(n * factor + 0.5)) for n in size)
        return first, second

    @classmethod
    def from_record(cls, record: Record) -> Preprocess:
        """The preprocessing that a checkpoint was published with."""
        return cls(
            size=record.input_size,
            crop_pct=record.crop_pct,
            crop_mode=record.crop_mode,
            interpolation=record.interpolation,
            mean=tuple(record.mean),
            std=tuple(record.std),
            longest=record.longest,
        )

    def to_config(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`, in Hugging Face's terms."""
        square = {"height": self.size, "width": self.size}
        resize: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
        if self.crop_mode == "center":
            short = {"shortest_edge": self.short_side}
            resize = {"image_processor_type": "BitImageProcessor", "size": short}
            resize |= {"do_center_crop": True, "crop_size": square, "crop_pct": self.crop_pct}
        elif self.crop_mode == "whole":
            resize["size"] = _edges(self.size, self.longest)
        return resize | {
            "do_resize": True,
            "resample": int(_FILTERS[self.interpolation]),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocess:
        """Reads a `preprocessor_config.json` of this library or of Hugging Face.

        Raises:
            ValueError: If a key is missing, of another type, or asks for anything but resizing, a
                center crop, division by 255 and normalization.
        """
        names = {int(value): name for name, value in _FILTERS.items()}
        return cls(**read_processor(config, names, _LONGEST_WHOLE))


@dataclass(frozen=True)
class SequencePreprocess:
    """Standardizes one sequence: `(x - mean) / std` per channel.

    Args:
        mean: What is subtracted, per channel.
        std: What the difference is divided by, per channel.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        return f"subtract {list(self.mean)}, divide by {list(self.std)}"

    def __call__(self, sequence: np.ndarray) -> mx.array:
        """Transforms a sequence `[length, channels]`, or `[length]` of one channel.

        Returns:
            `[length, channels]` in float32.
        """
        return mx.array(self.to_numpy(sequence))

    def to_numpy(self, sequence: np.ndarray) -> np.ndarray:
        """The same as a NumPy array.

        Raises:
            ValueError: A value is not finite.
        """
        values = np.asarray(sequence, np.float32).reshape(len(sequence), len(self.mean))
        check_finite("SequencePreprocess", "sequence", values)
        return (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    @classmethod
    def from_record(cls, record: Record) -> SequencePreprocess:
        """The preprocessing that a checkpoint was published with."""
        return cls(tuple(record.mean), tuple(record.std))


def in_words(record: Record, task: Task) -> str:
    """How the inputs of a model are prepared; `""` where a record does not tell."""
    if task.inputs == "volumes":
        resample = f"resample to {list(record.spacing)} mm, " if record.spacing else ""
        scale = "subtract each volume's mean, divide by its standard deviation"
        if record.intensity:
            scale = f"clip to {list(record.intensity)}, scale to 0..1"
        return f"{resample}{scale}; windows of {record.input_size} voxels a side"
    values = str(SequencePreprocess.from_record(record))
    if task.of_pictures:
        any_size = f"any size, divide by 255, {values}"
        return str(Preprocess.from_record(record)) if record.input_size else any_size
    return values if task.inputs == "sequences" else ""


def _center(image: Image.Image, size: Sequence[int]) -> Image.Image:
    if tuple(size) == image.size:
        return image  # which a crop would copy
    left, top = (round((n - kept) / 2) for n, kept in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _edges(short: int, longest: int | None) -> dict[str, int]:
    return {"shortest_edge": short, "longest_edge": longest or _LONGEST_WHOLE * short}

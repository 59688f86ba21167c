"""Names for a classifier's outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from functools import lru_cache
from pathlib import Path

from . import fashion_mnist, moving_fashion
from .names import plain
from .scene_classes import scene_classes

IMAGENET_FILE = Path(__file__).with_name("imagenet_classes.txt")

Color = tuple[int, ...]
# Steps of this part of a circle keep away from all earlier ones.
GOLDEN = 0.6180339887498949


def class_names(label_set: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of a classifier's outputs, in their order; `None` if they are not known.

    Args:
        label_set: A record's `classes`: the name of a label set, or the names themselves.

    Examples:
        >>> class_names("imagenet-1k")[:3]
        ('tench', 'goldfish', 'great white shark')
    """
    if label_set == "imagenet-1k":
        return imagenet_classes()[1]
    if scene := scene_classes(label_set):
        return tuple(entry.name for entry in scene)
    if label_set == "fashion-mnist":
        return fashion_mnist.CLASSES
    if label_set == "moving-fashion-mnist":
        return moving_fashion.CLASSES
    if label_set is None or isinstance(label_set, str):
        return None
    return tuple(label_set)


def output_names(label_set: str | Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A name for each of `count` outputs, `class 7` where none is known."""
    names = class_names(label_set)
    if names is None or len(names) != count:
        return tuple(f"class {index}" for index in range(count))
    return names


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet synsets (`n01440764`) and short names of ImageNet's 1,000 classes."""
    return _columns(IMAGENET_FILE)


def class_colors(label_set: str | Sequence[str] | None, count: int) -> tuple[Color, ...]:
    """A color (red, green, blue) for each of `count` classes, a label set's own if it has any.

    Others get hues that are far from those before them.

    Examples:
        >>> class_colors("ade20k", 150)[:2]
        ((120, 120, 120), (180, 120, 120))
        >>> class_colors(None, 2)
        ((230, 46, 46), (46, 99, 230))
    """
    own = [entry.color for entry in scene_classes(label_set) or () if entry.color is not None]
    if own and len(own) == count:
        return tuple(own)
    hues = ((GOLDEN * index) % 1 for index in range(count))
    return tuple(tuple(round(255 * c) for c in hsv_to_rgb(hue, 0.8, 0.9)) for hue in hues)


def _columns(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return tuple(first for first, _ in pairs), tuple(second for _, second in pairs)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads class names: one a line, or JSON as a list or as `{"0": name, "1": ...}`.

    Raises:
        ValueError: If the file is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin with a mark
        if not str(path).endswith(".json"):
            return tuple(plain(line) for line in text.splitlines() if line.strip())
        labels = json.loads(text)
        if isinstance(labels, dict):
            labels = [labels[str(index)] for index in range(len(labels))]
        return tuple(map(str, labels))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[read_labels] {path} must hold class names as text in UTF-8 but does not."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"[read_labels] {path} must be a JSON list of names or numbered names: {error!r}."
        ) from error

"""What is seen in scenes: names of things, which are counted, and of stuff, which is not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
# Of a label set of all classes this makes the one of the things alone, "coco-things".
THINGS = "-things"
LABEL_SETS = ("ade20k", "cityscapes", "coco", "mapillary")


class SceneClass(NamedTuple):
    """A class of a scene's pixels.

    Attributes:
        name: As the data set calls it, in short.
        is_thing: Whether it is counted: a car, but not the sky.
        color: Red, green and blue of the data set's own pictures, where there are any.
    """

    name: str
    is_thing: bool
    color: tuple[int, ...] | None = None


def scene_classes(label_set: object) -> tuple[SceneClass, ...] | None:
    """The classes of a label set in the order of a model's outputs; None if it is none of scenes.

    Args:
        label_set: `"ade20k"`, `"cityscapes"`, `"coco"` or `"mapillary"`, or one of them
            with `-things` behind it.

    Examples:
        >>> scene_classes("cityscapes-things")[0].name, len(scene_classes("coco"))
        ('person', 133)
    """
    if not isinstance(label_set, str) or label_set.removesuffix(THINGS) not in LABEL_SETS:
        return None
    return _classes_of(label_set)


@cache
def _classes_of(label_set: str) -> tuple[SceneClass, ...]:
    file = FOLDER / f"{label_set.removesuffix(THINGS)}_classes.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    classes = tuple(_read(line) for line in lines if not line.startswith("#"))
    if not label_set.endswith(THINGS):
        return classes
    return tuple(entry for entry in classes if entry.is_thing)


def _read(line: str) -> SceneClass:
    first, rest = line.split(" ", 1)
    if first in ("thing", "stuff"):
        return SceneClass(rest, first == "thing")
    kind, name = rest.split(" ", 1)
    return SceneClass(name, kind == "thing", tuple(bytes.fromhex(first)))

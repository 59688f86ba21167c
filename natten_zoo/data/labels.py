"""Names for a classifier's outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from . import fashion_mnist

IMAGENET_FILE = Path(__file__).with_name("imagenet_classes.txt")


def class_names(label_set: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of a classifier's outputs, in their order; ``None`` if they are not known.

    Args:
        label_set: A record's ``classes``: the name of a label set, or the names themselves.

    Example:
        >>> class_names("imagenet-1k")[:3]
        ('tench', 'goldfish', 'great white shark')
    """
    if label_set == "imagenet-1k":
        return imagenet_classes()[1]
    if label_set == "fashion-mnist":
        return fashion_mnist.CLASSES
    if label_set is None or isinstance(label_set, str):
        return None
    return tuple(label_set)


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet synsets (``n01440764``) and short names of ImageNet's 1,000 classes."""
    lines = IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return tuple(synset for synset, _ in pairs), tuple(name for _, name in pairs)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads class names: one a line, or JSON as a list or as ``{"0": name, "1": ...}``.

    Raises:
        ValueError: If the file is neither.
    """
    text = Path(path).read_text(encoding="utf-8")
    if not str(path).endswith(".json"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        labels = json.loads(text)
        if isinstance(labels, dict):
            labels = [labels[str(index)] for index in range(len(labels))]
        return tuple(map(str, labels))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"[read_labels] {path} must be a JSON list of names or numbered names: {error!r}."
        ) from error

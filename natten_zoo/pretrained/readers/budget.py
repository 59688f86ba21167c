"""How much may be built from one file, whatever it says of itself.

A file of a megabyte can describe gigabytes: by deflation, by a list that a pickle passes to a
function again and again, by arrays whose strides are zero. So what a reader builds is counted
while it is built, and a file may ask for so much and no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from typing import Any

from .errors import CheckpointError

# What a file may describe, as a multiple of its size: tied weights and views share their bytes.
EXPANSION = 8
# What any file may describe besides, however small: Python's own objects, zeros that deflate well.
FREE = 64 << 20
# MLX counts the entries of an axis in 32 bits; no weight has so many axes.
MAX_SIDE = (1 << 31) - 1
MAX_AXES = 32
# Elements of an array, its empty axes not counted: beyond this, products of its sides overflow.
MAX_SIZE = 1 << 60
# About what Python needs for one value of a JSON document, with its place in a list or dict.
JSON_VALUE = 100


class Budget:
    """An account of bytes that is only drawn on.

    Args:
        path: The file, for the message.
        nbytes: Its size.
        free: Bytes that it may describe however small it is.
        what: What is counted, for the message.
    """

    def __init__(
        self, path: str | PathLike[str], nbytes: int, *, free: int = FREE, what: str = "contents"
    ) -> None:
        self._path, self._what = path, what
        self._left = free + EXPANSION * nbytes

    def spend(self, nbytes: int) -> None:
        """Count something that is about to be built.

        Raises:
            CheckpointError: The file describes more than it may.
        """
        self._left -= nbytes
        if self._left < 0:
            raise CheckpointError(
                self._path, f"its {self._what} take more than {EXPANSION} times the file's size"
            )


def is_shape(value: Any) -> bool:
    """Whether a value from a file is the shape of an array that MLX can have."""
    if not isinstance(value, (list, tuple)) or len(value) > MAX_AXES:
        return False
    if not all(type(side) is int and 0 <= side <= MAX_SIDE for side in value):
        return False
    size = 1
    for side in value:
        size *= side or 1
    return size <= MAX_SIZE


def parse_json(
    path: str | PathLike[str],
    text: bytes,
    nbytes: int,
    what: str = "",
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> dict[str, Any]:
    """Parse a JSON object, unless its values would take far more room than its text.

    Args:
        path: The file, for the message.
        text: The document, in UTF-8.
        nbytes: Size of the file that it is in.
        what: What the message begins with, such as "its header is ".
        pairs: Makes an object of its pairs; refuses with `ValueError`.

    Raises:
        CheckpointError: It is damaged, no object, or a bomb.
    """
    values = sum(map(text.count, (b",", b"[", b"{")))
    Budget(path, nbytes, what="JSON values").spend(JSON_VALUE * values + len(text))
    try:
        value = json.loads(text.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"{what}no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"{what}no JSON object")
    return value

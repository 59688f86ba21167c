"""Masks as runs, as COCO writes them: column by column, lengths of zeros and ones in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Runs:
    """A mask that is written a few columns at a time and takes as much memory as its outline.

    Args:
        height: Of the mask.

    Examples:
        >>> runs = Runs(height=2)
        >>> runs.add(np.array([[0, 1], [1, 1]], bool))
        >>> runs.counts, runs.area, runs.width
        ([1, 3], 3, 2)
    """

    def __init__(self, height: int) -> None:
        self.height = height
        self.counts: list[int] = [0]

    def add(self, columns: np.ndarray) -> None:
        """Append columns, `[height, columns]` of booleans."""
        values = columns.ravel(order="F")
        edges = np.flatnonzero(values[1:] != values[:-1]) + 1
        lengths = np.diff(edges, prepend=0, append=len(values)).tolist()
        if bool(values[0]) == (len(self.counts) % 2 == 0):  # goes on as the last column ended
            self.counts[-1] += lengths.pop(0)
        self.counts += lengths

    @property
    def width(self) -> int:
        """Columns so far."""
        return sum(self.counts) // self.height

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return sum(self.counts[1::2])

    def mask(self) -> np.ndarray:
        """`[height, width]` of booleans."""
        values = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return values.reshape(-1, self.height).T

    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the smallest box around the mask; zeros if it is empty."""
        return mask_box(self.mask())

    def to_coco(self) -> dict[str, object]:
        """`{"size": [height, width], "counts": text}`, as COCO's tools read it."""
        return {"size": [self.height, self.width], "counts": compress(self.counts)}


def runs_of(mask: np.ndarray) -> Runs:
    """A mask `[height, width]` of booleans as runs."""
    runs = Runs(mask.shape[0])
    runs.add(mask)
    return runs


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of the smallest box around a mask; zeros if it is empty.

    Examples:
        >>> mask_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
        (1, 1, 2, 1)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    left, top = int(columns[0]), int(rows[0])
    return (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


def compress(counts: Sequence[int]) -> str:
    """Lengths as COCO's text: in digits of 5 bits, from the fourth on less the last but one.

    Examples:
        >>> compress([0, 9]), compress([5, 3, 90, 4])
        ('09', '53j21')
    """
    text = []
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            digit = value & 31
            value >>= 5
            more = value != (-1 if digit & 16 else 0)
            text.append(chr(48 + (digit | 32 * more)))
    return "".join(text)


def decompress(text: str) -> list[int]:
    """The lengths of [`compress`][]' text.

    Examples:
        >>> decompress("53j21")
        [5, 3, 90, 4]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts

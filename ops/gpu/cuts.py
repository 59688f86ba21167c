"""Launches cut up: macOS ends one that keeps the screen from being drawn for a second or so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import mlx.core as mx

from .params import padded
from .shapes import Axes

MOST_THREADS = 2**31 - 1  # of a launch: MLX counts them in an int


@dataclass(frozen=True)
class Cut:
    """A part of a launch: some samples, and on each axis some tiles of each dilation group.

    Attributes:
        samples: From, to.
        first: Tile on each axis,
        last: and the one behind the last.
        own: Rows on each axis, from and to, of arrays that have one for each of a tile's rows.
    """

    samples: tuple[int, int]
    first: Axes
    last: Axes
    own: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> Axes:
        """On each axis."""
        z, y, x = (b - a for a, b in zip(self.first, self.last, strict=True))
        return z, y, x

    @property
    def rows(self) -> Axes:
        """Its own, on each axis."""
        z, y, x = (b - a for a, b in self.own)
        return z, y, x

    def on_finer(self, times: Sequence[int]) -> Cut:
        """The same of arrays that are so many times finer, on the axes of a problem."""
        z, y, x = ((a * r, b * r) for (a, b), r in zip(self.own, padded(times), strict=True))
        return replace(self, own=(z, y, x))

    def take(self, array: mx.array, rank: int, own: bool) -> mx.array:
        """What it needs of an array `[batch, *axes, ...]`."""
        box = [slice(*at) for at in self.own[3 - rank :]] if own else []
        return array[(slice(*self.samples), *box)]

    def shape(self, whole: Sequence[int], rank: int) -> tuple[int, ...]:
        """Of what it writes of an array `[batch, *axes, ...]` of its own rows."""
        first, last = self.samples
        return (last - first, *self.rows[3 - rank :], *whole[1 + rank :])


def cut_up(batch: int, tiles: Axes, pieces: int, span: Axes, rows: Axes) -> list[Cut]:
    """At least so many cuts of about one size, if there are so many tiles. One is all there is.

    Args:
        batch: Samples.
        tiles: On each axis, of each dilation group.
        pieces: How many are wanted.
        span: Rows of a tile on each axis, with those of other groups that lie between them.
        rows: Of an array that has one for each of a tile's rows.
    """
    ranges = []
    for count in (batch, *tiles):
        n = -(-count // max(count // pieces, 1)) if count else 1  # none is larger than asked for
        pieces = -(-pieces // n)
        ranges.append([(count * i // n, count * (i + 1) // n) for i in range(n)])
    cuts = []
    for samples, z, y, x in product(*ranges):
        box = zip((z, y, x), span, rows, strict=True)
        own = tuple((a * wide, min(b * wide, n)) for (a, b), wide, n in box)
        cuts.append(Cut(samples, (z[0], y[0], x[0]), (z[1], y[1], x[1]), own))
    return cuts


def join(cuts: Sequence[Cut], arrays: Sequence[mx.array], rank: int) -> mx.array:
    """What `cut_up`'s cuts wrote, as one array."""
    keys = [(cut.samples, *cut.own[3 - rank :]) for cut in cuts]
    for axis in reversed(range(1 + rank)):
        lines: dict[tuple[tuple[int, int], ...], list[mx.array]] = {}
        for key, array in zip(keys, arrays, strict=True):
            lines.setdefault(key[:axis], []).append(array)
        keys = list(lines)
        arrays = [mx.concatenate(x, axis) if len(x) > 1 else x[0] for x in lines.values()]
    return arrays[0]

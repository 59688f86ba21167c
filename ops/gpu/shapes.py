"""How a core's fragments and teams lie on the axes of a problem, so that they pay for few keys."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from statistics import fmean

from ...metal import Core

Axes = tuple[int, int, int]

COLUMN_COST = 0.2  # of beginning a column of fragments, in fragments


@dataclass(frozen=True)
class Shape:
    """How the rows of a team and the tokens of a fragment lie.

    Attributes:
        rows: Of a team, on each axis: queries, or keys in the pass over keys.
        axis: Of columns. A column is the fragments of a team's walk over keys that differ on this
            axis only (metal/walk.h).
        high: Rows along it in which the tokens of a fragment lie.
    """

    rows: Axes
    axis: int
    high: int


@lru_cache(maxsize=4096)
def fragment(rank: int, kernel: Axes, core: Core, by_key: bool) -> Shape:
    """The cheapest shape: whose queries see few fragments of keys together, in few columns.

    Counted over a whole map, and with queries and keys in each other's places for tiles of keys:
    near a border fewer keys are seen, but more queries see a key.
    """
    at_once = core.height  # fragments of a column

    def cost(shape: Shape) -> tuple[float, float]:
        extents = [_extents(k, q, by_key) for q, k in zip(shape.rows, kernel, strict=True)]
        across = [extents[a] for a in range(3 - rank, 3) if a != shape.axis]
        deep = shape.high * at_once
        depth = fmean(-(-n // deep) for n in extents[shape.axis])
        columns = fmean(-(-math.prod(x) * shape.high // core.tokens) for x in product(*across))
        seen = math.prod(map(fmean, extents))
        return depth * columns * at_once + COLUMN_COST * columns, seen

    return min(_shapes(rank, core), key=cost)


def _shapes(rank: int, core: Core) -> Iterator[Shape]:
    """All that the kernels can take."""
    axes = {1: (2,), 2: (1,), 3: (0, 1)}[rank]
    if rank == 1:
        heights = [core.tokens]
    elif core.whole:  # a lane's two tokens are neighbors across columns; in 3-D columns are short
        heights = [1, 2, 4] if rank == 2 else [1]
    else:  # two columns, so that a slab may be cut between any two
        heights = [core.tokens // 2]
    for queries, axis, high in product(_boxes(core.rows, rank), axes, heights):
        yield Shape(queries, axis, high)


def _extents(kernel: int, count: int, by_key: bool) -> list[int]:
    """How many keys ``count`` neighboring queries see, all over an axis; or the reverse."""
    length = max(4 * kernel, 16)
    firsts = [min(max(i - kernel // 2, 0), length - kernel) for i in range(length)]
    ends = [(i, min(i + count, length) - 1) for i in range(0, length, count)]
    if by_key:
        return [bisect_right(firsts, b) - bisect_right(firsts, a - kernel) for a, b in ends]
    return [firsts[b] + kernel - firsts[a] for a, b in ends]


def _boxes(volume: int, rank: int) -> list[Axes]:
    """All boxes of a volume, a power of two; a problem's axes are the last ones."""
    sides = [2**i for i in range(volume.bit_length())]
    boxes = product(*([sides if a >= 3 - rank else [1] for a in range(3)]))
    return [box for box in boxes if math.prod(box) == volume]


def team_counts(core: Core) -> list[int]:
    """Teams of a threadgroup, from the largest tile to the smallest.

    A tile reads each key once for all its queries, so the largest of which there are enough to
    keep the whole GPU busy is taken. Every Apple GPU can run 256 threads, but single lanes need so
    many registers that three threadgroups of 128 fill a processor better than one of 256.
    """
    threads = [t for t in (256, 128, 64, 32) if t <= core.threads]
    return [t // core.lanes for t in threads]


def lay_teams(rank: int, kernel: Axes, shape: Shape, count: int, sizes: Axes, core: Core) -> Axes:
    """How teams lie in a tile: such that it sees the fewest keys.

    Those of a simdgroup lie along the columns, where they keep pace (metal/tile.h), unless that
    axis is too short for them.
    """
    together = min(32 // core.lanes, count)
    while together > 1 and (together - 1) * shape.rows[shape.axis] >= sizes[shape.axis]:
        together //= 2

    def seen(teams: Axes) -> tuple[int, int]:
        axes = zip(shape.rows, teams, kernel, strict=True)
        return math.prod(q * g + k - 1 for q, g, k in axes), teams[2]

    return min((b for b in _boxes(count, rank) if b[shape.axis] % together == 0), key=seen)

"""How a core's fragments and teams lie on the axes of a problem, so that they pay for few keys."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from statistics import fmean

from ...metal import Core

Axes = tuple[int, int, int]

NO_LIMIT: Axes = (2**20, 2**20, 2**20)

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
def fragments(rank: int, kernel: Axes, core: Core, by_key: bool) -> list[Shape]:
    """All shapes of a team, the cheapest first: which sees few fragments, in few columns.

    Counted over a whole map, and with queries and keys in each other's places for tiles of keys:
    near a border fewer keys are seen, but more queries see a key.
    """

    def cost(shape: Shape) -> tuple[float, float]:
        extents = [_extents(k, q, by_key) for q, k in zip(shape.rows, kernel, strict=True)]
        across = [extents[a] for a in range(3 - rank, 3) if a != shape.axis]
        depth = fmean(-(-n // shape.high) for n in extents[shape.axis])
        columns = fmean(-(-math.prod(x) * shape.high // core.tokens) for x in product(*across))
        seen = math.prod(map(fmean, extents))
        return depth * columns + COLUMN_COST * columns, seen

    return sorted(_shapes(rank, core), key=cost)


def _shapes(rank: int, core: Core) -> Iterator[Shape]:
    """All that the kernels can take."""
    axes = {1: (2,), 2: (1,), 3: (1,) if core.plane else (0, 1)}[rank]
    if core.plane:  # eight tokens side by side, and as many rows of them, an even way apart
        heights = [core.tokens if rank == 1 else core.tokens // 8]
    elif rank == 1:
        heights = [core.tokens]
    elif core.whole:  # a lane's two tokens are neighbors across columns; in 3-D columns are short
        heights = [1, 2, 4] if rank == 2 else [1, 2] if core.name != "tensor" else [1]
    else:  # two columns, so that a slab may be cut between any two
        heights = [core.tokens // 2]
    for queries, axis, high in product(boxes(core.rows, rank), axes, heights):
        yield Shape(queries, axis, high)


def _extents(kernel: int, count: int, by_key: bool) -> list[int]:
    """How many keys `count` neighboring queries see, all over an axis; or the reverse."""
    length = max(4 * kernel, 16)
    firsts = [min(max(i - kernel // 2, 0), length - kernel) for i in range(length)]
    ends = [(i, min(i + count, length) - 1) for i in range(0, length, count)]
    if by_key:
        return [bisect_right(firsts, b) - bisect_right(firsts, a - kernel) for a, b in ends]
    return [firsts[b] + kernel - firsts[a] for a, b in ends]


def boxes(volume: int, rank: int) -> list[Axes]:
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
    return [t // core.team_threads for t in threads if t >= core.team_threads]


def teams_together(core: Core, shape: Shape, count: int, size: int) -> int:
    """How many teams lie along the columns.

    Those of a simdgroup do, where they keep pace (metal/tile.h), unless that axis is too short for
    them.
    """
    together = min(max(32 // core.lanes, 1), count)
    while together > 1 and (together - 1) * shape.rows[shape.axis] >= size:
        together //= 2
    return together


def lay_teams(rank: int, kernel: Axes, shape: Shape, count: int, sizes: Axes, core: Core) -> Axes:
    """How teams lie in a tile: such that it sees the fewest keys."""
    together = teams_together(core, shape, count, sizes[shape.axis])

    def seen(teams: Axes) -> tuple[float, int]:
        axes = list(zip(shape.rows, teams, kernel, strict=True))
        volume = math.prod(q * g + k - 1 for q, g, k in axes)
        if core.parts == 1:
            return volume, teams[2]
        # In step all go as far as any, on all axes but the innermost, which slabs are last cut on.
        along = math.prod(q * g + k - 1 for q, g, k in axes[:2]) * (axes[2][0] + axes[2][2] - 1)
        busy = math.prod(
            min(g, -(-n // q)) for q, g, n in zip(shape.rows, teams, sizes, strict=True)
        )
        return along / busy, volume

    return min((b for b in boxes(count, rank) if b[shape.axis] % together == 0), key=seen)


# What beginning a fragment, a column of them and a slab takes, in tokens of a team's fragment; and
# what copying a token takes a simdgroup.
FRAGMENT, COLUMN, SLAB, COPY = 2.5, 10.0, 40.0, 2.8


@dataclass(frozen=True)
class Slabs:
    """How the box of keys that a tile sees is cut into slabs.

    Attributes:
        reach: Tokens of a slab on each axis, at most.
        cost: Of a team's walk over all of them, in tokens.
    """

    reach: Axes
    cost: float


@lru_cache(maxsize=4096)
def slabs(
    rank: int,
    kernel: Axes,
    window_stride: Axes,
    core: Core,
    shape: Shape,
    teams: Axes,
    capacity: int,
) -> Slabs:
    """The cheapest slabs of at most `capacity` tokens, on an NVIDIA GPU.

    A slab ends fragments, columns and, since all teams of a threadgroup wait for it, their work.
    What it cuts a team's keys into is counted for the first team, which has the least: that is how
    the numbers above were found on an H200.
    """

    def keys(queries: int, size: int, shared: int) -> int:
        return size + (-(-queries // shared) - 1) * shared

    axes = list(zip(shape.rows, teams, kernel, window_stride, strict=True))
    box = [keys(rows * n, size, shared) for rows, n, size, shared in axes]
    seen = [keys(rows, size, shared) for rows, _, size, shared in axes]
    columns, other = core.tokens // shape.high, 1 - shape.axis

    def reaches(axis: int) -> list[int]:
        piece = shape.high if axis == shape.axis else 1
        if axis == 2 and (rank == 2 or (rank == 3 and core.plane)):
            piece = columns
        parts = range(1, -(-box[axis] // piece) + 1)
        even = {-(-box[axis] // n) for n in parts}
        return sorted({min(-(-n // piece) * piece, box[axis]) for n in even})

    def pieces(axis: int, size: int) -> tuple[int, ...]:
        if core.parts > 1:  # in step, all go as far as any
            return _longest(box[axis], seen[axis], size, shape.rows[axis], teams[axis])
        rest = seen[axis] % size
        return (size,) * (seen[axis] // size) + ((rest,) if rest else ())

    @cache
    def deep(size: int) -> float:
        cut = pieces(shape.axis, size)
        return sum(-(-n // shape.high) for n in cut) * (core.tokens + FRAGMENT) + len(cut) * COLUMN

    @cache
    def wide(*sizes: int) -> int:
        cuts = [pieces(axis, size) for axis, size in zip((2, other), sizes, strict=False)]
        if core.plane and rank == 3:  # every row begins a fragment anew
            cuts[0] = tuple(-(-n // columns) * columns for n in cuts[0])
        return sum(-(-math.prod(n) // columns) for n in product(*cuts))

    def cost(reach: Axes) -> float:
        across = () if rank == 1 else (reach[2],) if rank == 2 else (reach[2], reach[other])
        walk = wide(*across) * deep(reach[shape.axis])
        number = math.prod(-(-n // size) for n, size in zip(box, reach, strict=True))
        return float(walk + number * SLAB + math.prod(box) * COPY / math.prod(teams))

    zs, ys, xs = (reaches(a) if box[a] > 1 else [1] for a in range(3))
    if core.plane and rank > 1:  # what lies beyond the last row of a fragment is still a plane's
        xs = [x for x in xs if x * shape.high <= core.plane] or [columns]
    options = [reach for reach in product(zs, ys, xs) if math.prod(reach) <= capacity]
    found = min(options, key=cost, default=(1, 1, max(capacity, 1)))
    return Slabs(found, cost(found))


def _longest(box: int, seen: int, size: int, rows: int, teams: int) -> tuple[int, ...]:
    """Of each slab along an axis, the most that a team sees of it."""
    slabs = ((low, min(low + size, box)) for low in range(0, box, size))
    firsts = [i * rows for i in range(teams)]
    most = (max(min(b, n + seen) - max(a, n) for n in firsts) for a, b in slabs)
    return tuple(n for n in most if n > 0)

"""What the walks of all teams over a map take, counted one by one; and the layout that takes least.

On a map that is not many times as long as its windows the borders weigh as much as the middle, and
where windows take many slabs it matters where each team's keys are cut. Both are counted here, for
the cores of Metal. What a launch of tensor cores costs was found on a GPU (`shapes.slabs`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from ...metal import Core
from ..neighborhood import Neighborhood
from ..problem import Problem
from .shapes import (
    COLUMN,
    COPY,
    FRAGMENT,
    NO_LIMIT,
    SLAB,
    Axes,
    Shape,
    boxes,
    team_counts,
    teams_together,
)

FULL = 0.5  # of a slab's room, that is used at least
MOST_CUTS = 12  # of an axis, into even parts
SHAPES_COUNTED = 4  # of those that `fragments` ranks
LONGEST = 8  # windows, of an axis that is counted: the middle of a longer one is all alike
LENGTHS = (2, 8)  # windows, of maps for which shapes are chosen: all maps share their kernels


class Weights(NamedTuple):
    """What takes how long, in tokens of a team's fragment: about so, by scripts/kernel_cost.py.

    Attributes:
        fragment: Beside its tokens.
        column: Of fragments, to begin one.
        slab: For each team, which waits for all others there.
        copy: Of a token to threadgroup memory.
    """

    fragment: float
    column: float
    slab: float
    copy: float


WHOLE = Weights(FRAGMENT, COLUMN, SLAB, COPY)  # of teams that are simdgroups,
FEW_LANES = Weights(0.7, 1.5, 8.0, 1.0)  # and of those of a few lanes, which take long for a token


class Line(NamedTuple):
    """An axis, without its dilation: a problem's are alike for all dilation groups.

    Attributes:
        keys: On it.
        kernel: See `Neighborhood`.
        window_stride: The same.
        step: Keys from a query to the next.
        is_causal: See `Neighborhood`.
        by_key: Whether tiles are of keys.
    """

    keys: int
    kernel: int
    window_stride: int
    step: int
    is_causal: bool
    by_key: bool

    def with_keys(self, windows: int) -> Line:
        """One of so many windows' length."""
        return self._replace(keys=windows * max(self.kernel, self.window_stride))

    def not_too_long(self) -> Line:
        """As many keys as are counted."""
        return self._replace(keys=min(self.keys, self.with_keys(LONGEST).keys + 64))


Lines = tuple[Line, Line, Line]
ONE = Line(1, 1, 1, 1, False, False)
ONE_BY_ONE = {0: 1, 1: 1, 2: 1}  # the reach where a slab has no room for more


class Layout(NamedTuple):
    """How a tile is laid out, and what all of them cost: in tokens of a team's fragment."""

    cost: float
    shape: Shape
    teams: Axes
    reach: Axes


_Lengths = tuple[tuple[int, int], ...]


class _Pieces(NamedTuple):
    """What slabs make of the keys of all teams along an axis.

    Attributes:
        lengths: Of the pieces that are not empty, each with how many there are.
        slabs: Of all tiles.
        tokens: That these stage.
    """

    lengths: _Lengths
    slabs: int
    tokens: int


def lay_out(
    problem: Problem,
    core: Core,
    shapes: Sequence[Shape],
    count: int,
    capacity: int,
    least: float,
    *,
    by_key: bool,
) -> Layout:
    """How `count` teams are laid out for a problem.

    Args:
        problem: What is computed.
        core: Who multiplies.
        shapes: Of a team, the best first.
        count: Teams of a tile.
        capacity: Tokens that a slab has room for.
        least: How many tiles of a map there must be, if any layout has as many.
        by_key: Whether tiles are of keys.
    """
    lines, rank = _lines_of(problem, by_key=by_key), problem.rank
    tried = tuple(shapes[: SHAPES_COUNTED if core.whole else 1])
    shape = cheapest_shape(rank, lines, core, tried, team_counts(core)[0], capacity)
    z, y, x = (line.not_too_long() for line in lines)
    enough = least if (z, y, x) == lines else 0
    layout = cheapest(rank, (z, y, x), core, shape, count, capacity, enough)
    return layout._replace(reach=_as_far_as_it_goes(rank, core, layout, capacity))


def _lines_of(problem: Problem, *, by_key: bool) -> Lines:
    hood = problem.neighborhood
    z, y, x = [ONE] * (3 - problem.rank) + [
        Line(
            keys=-(-problem.spatial[a] // hood.dilation[a]),
            kernel=hood.kernel_size[a],
            window_stride=hood.window_stride[a],
            step=hood.stride[a] // math.gcd(hood.stride[a], hood.dilation[a]),
            is_causal=hood.is_causal[a],
            by_key=by_key,
        )
        for a in range(problem.rank)
    ]
    return z, y, x


def _as_far_as_it_goes(rank: int, core: Core, layout: Layout, capacity: int) -> Axes:
    """The reach, without a limit on the axis that kernels see to last (na_tour_of in slab.h).

    Where it is all that is left of a slab's room, tiles near a border have more of it.
    """
    shape, reach = layout.shape, list(layout.reach)
    last = 3 - rank if core.whole else 2 if rank < 3 else 1 - shape.axis
    across = core.tokens // shape.high if not core.whole and last == 2 else 1
    piece = shape.high if last == shape.axis else across
    room = capacity * reach[last] // math.prod(reach)
    if reach[last] >= room - room % piece:
        reach[last] = NO_LIMIT[last]
    z, y, x = reach
    return z, y, x


@lru_cache(maxsize=4096)
def cheapest_shape(
    rank: int, lines: Lines, core: Core, shapes: tuple[Shape, ...], count: int, capacity: int
) -> Shape:
    """The shape that costs least for maps of many sizes; see `cheapest`."""

    def cost(shape: Shape) -> float:
        total = 0.0
        for windows in LENGTHS:
            z, y, x = (line if line is ONE else line.with_keys(windows) for line in lines)
            found = cheapest(rank, (z, y, x), core, shape, count, capacity)
            total += found.cost / math.prod(line.keys for line in (z, y, x))
        return total

    return min(shapes, key=cost)


@lru_cache(maxsize=4096)
def cheapest(
    rank: int,
    lines: Lines,
    core: Core,
    shape: Shape,
    count: int,
    capacity: int,
    least: float = 0,
) -> Layout:
    """The layout of `count` teams that costs least, with slabs of at most `capacity` tokens.

    Args:
        rank: Of the problem.
        lines: Its axes.
        core: Who multiplies.
        shape: Of its teams.
        count: Teams of a tile.
        capacity: Tokens that a slab has room for.
        least: How many tiles there must be, if any layout has as many.
    """
    together = teams_together(core, shape, count, len(_sights(lines[shape.axis])[0]))
    found = [
        _fewest_cuts(lines, core, shape, teams, capacity, least)
        for teams in boxes(count, rank)
        if teams[shape.axis] % together == 0
    ]
    return min(found)[-1]


def _fewest_cuts(
    lines: Lines, core: Core, shape: Shape, teams: Axes, capacity: int, least: float
) -> tuple[bool, float, Axes, Layout]:
    """The cheapest reach; first comes whether there are too few tiles, what it costs, and teams."""
    weights = WHOLE if core.whole else FEW_LANES
    columns, number = core.tokens // shape.high, math.prod(teams)
    sides = [rows * n for rows, n in zip(shape.rows, teams, strict=True)]
    boxes = [_boxes(line, side) for line, side in zip(lines, sides, strict=True)]

    def cuts(axis: int) -> dict[int, _Pieces]:
        in_step = teams[axis] if core.parts > 1 else 1
        if axis == shape.axis and not core.whole:  # those of a simdgroup
            in_step = math.gcd(teams[axis], 32 // core.lanes)
        longest = max(last - first for first, last in boxes[axis])
        piece = shape.high if axis == shape.axis else columns if lines[0] is ONE else 1
        even = {-(-longest // n) for n in range(1, MOST_CUTS + 1)}
        reaches = {1, min(longest, capacity)}
        reaches |= {min(-(-n // piece) * piece, longest) for n in even}
        line, rows = lines[axis], shape.rows[axis]
        return {n: _pieces(line, rows, teams[axis], n, in_step) for n in sorted(reaches)}

    def deep(pieces: _Pieces) -> float:
        return sum(
            times * (-(-length // shape.high) * (core.tokens + weights.fragment) + weights.column)
            for length, times in pieces.lengths
        )

    one, other = (axis for axis in range(3) if axis != shape.axis)
    down, across, aside = cuts(shape.axis), cuts(one), cuts(other)
    depth = {n: deep(pieces) for n, pieces in down.items()}
    most = min(capacity, max(down) * max(across) * max(aside))
    best, found = math.inf, ONE_BY_ONE
    for (n, a), (m, b) in product(across.items(), aside.items()):
        for reach, pieces in down.items():
            if FULL * most <= n * m * reach <= capacity:
                slabs, tokens = (math.prod(x) for x in zip(a[1:], b[1:], pieces[1:], strict=True))
                cost = slabs * number * weights.slab + tokens * weights.copy
                if cost < best:
                    cost += _wide(a.lengths, b.lengths, columns) * depth[reach]
                if cost < best:
                    best, found = cost, {one: n, other: m, shape.axis: reach}
    layout = Layout(best, shape, teams, (found[0], found[1], found[2]))
    return math.prod(map(len, boxes)) < least, best, teams, layout


@lru_cache(maxsize=2**14)
def _wide(across: _Lengths, aside: _Lengths, columns: int) -> int:
    """Columns of all teams, in one slab along them."""
    return sum(m * n * -(-a * b // columns) for a, m in across for b, n in aside)


@lru_cache(maxsize=2**16)
def _pieces(line: Line, rows: int, teams: int, reach: int, in_step: int) -> _Pieces:
    lengths, slabs, tokens = Counter[int](), 0, 0
    for (box, seen), times in _tiles(line, rows, teams).items():
        tokens += times * box
        for low in range(0, box, reach):
            high = min(low + reach, box)
            cut = [max(min(high, last) - max(low, first), 0) for first, last in seen]
            for i in range(0, teams, in_step):  # all of them go as far as any
                lengths[max(cut[i : i + in_step])] += times * in_step
            slabs += times
    del lengths[0]
    return _Pieces(tuple(lengths.items()), slabs, tokens)


@lru_cache(maxsize=2**12)
def _tiles(line: Line, rows: int, teams: int) -> Counter[tuple[int, tuple[tuple[int, int], ...]]]:
    """How many tiles there are of a kind: what one sees, and what of that each of its teams."""
    kinds = Counter[tuple[int, tuple[tuple[int, int], ...]]]()
    each = _boxes(line, rows)
    for i, (low, high) in enumerate(_boxes(line, rows * teams)):
        seen = [(first - low, last - low) for first, last in each[i * teams : (i + 1) * teams]]
        kinds[high - low, (*seen, *[(0, 0)] * (teams - len(seen)))] += 1
    return kinds


@lru_cache(maxsize=2**12)
def _boxes(line: Line, rows: int) -> list[tuple[int, int]]:
    """What every `rows` neighbors see together."""
    first, last = _sights(line)
    return [(first[i], last[min(i + rows, len(last)) - 1]) for i in range(0, len(first), rows)]


@lru_cache(maxsize=2**10)
def _sights(line: Line) -> tuple[list[int], list[int]]:
    """Where what a query sees begins and ends; or a key is seen."""
    hood = Neighborhood.of(
        1, line.kernel, window_stride=line.window_stride, is_causal=line.is_causal
    )
    first, count = hood.window(0, np.arange(0, line.keys, line.step), line.keys)
    last = first + count
    if line.by_key:
        keys = np.arange(line.keys)
        first, last = np.searchsorted(last, keys, "right"), np.searchsorted(first, keys, "right")
        last = np.maximum(first, last)
    return first.tolist(), last.tolist()

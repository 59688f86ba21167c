"""What the walks of all teams over a map take, counted one by one; and the layout that takes least.

On a map that is not many times as long as its windows the borders weigh as much as the middle, and
where windows take many slabs it matters where each team's keys are cut. Both are counted here, for
the cores of Metal. What a launch of tensor cores costs was found on a GPU (`shapes.slabs`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
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


class Layout(NamedTuple):
    """How a tile is laid out, and what all of them cost: in tokens of a team's fragment."""

    cost: float
    shape: Shape
    teams: Axes
    reach: Axes


_Lengths = tuple[tuple[int, int], ...]
_Boxes = Sequence[tuple[int, int]]


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
    """The reach, without a limit on the axis that kernels see to last (na_begin_tour in slab.h).

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
    """The cheapest reach; first comes whether there are too few tiles, what it costs, and teams.

    It takes long to count the pieces of all teams. So reaches are tried in the order of what slabs
    alone cost, until that is more than the best costs with its pieces.
    """
    weights, at = WHOLE if core.whole else FEW_LANES, shape.axis
    columns = core.tokens // shape.high
    tiles = [_boxes(lines[a], shape.rows[a] * teams[a]) for a in range(3)]

    def pieces(axis: int, reach: int) -> _Lengths:
        in_step = teams[axis] if core.parts > 1 else 1
        if axis == at and not core.whole:  # those of a simdgroup
            in_step = math.gcd(teams[axis], 32 // core.lanes)
        return _pieces(lines[axis], shape.rows[axis], teams[axis], reach, in_step)

    one, other = (axis for axis in range(3) if axis != at)
    uncut = [sum(n * m for n, m in pieces(axis, NO_LIMIT[axis])) for axis in range(3)]
    fragments = math.prod(uncut) / core.tokens * (core.tokens + weights.fragment)  # at least
    best, first, found = math.inf, 0, (1, 1, 1)  # where a slab has no room for more
    for staged, number, reach in sorted(_staged(lines, tiles, core, shape, teams, capacity)):
        if staged + 0.999 * fragments > best:
            break
        across, aside, along = (pieces(axis, reach[axis]) for axis in (one, other, at))
        deep = _deep(along, core.tokens, shape.high, weights)
        cost = staged + _wide(across, aside, columns) * deep
        if (cost, number) < (best, first):
            best, first, found = cost, number, reach
    too_few = math.prod(map(len, tiles)) < least
    return too_few, best, teams, Layout(best, shape, teams, found)


def _staged(
    lines: Lines, tiles: Sequence[_Boxes], core: Core, shape: Shape, teams: Axes, capacity: int
) -> Iterator[tuple[float, int, Axes]]:
    """Reaches that a slab has room for and that fill it, numbered, each after what slabs cost."""
    weights = WHOLE if core.whole else FEW_LANES
    aside = core.tokens // shape.high if lines[0] is ONE else 1
    slabs = [
        _slabs(boxes, shape.high if axis == shape.axis else aside, capacity)
        for axis, boxes in enumerate(tiles)
    ]
    most = min(capacity, math.prod(map(max, slabs)))
    copies = math.prod(sum(last - first for first, last in boxes) for boxes in tiles)
    one, other = (axis for axis in range(3) if axis != shape.axis)
    for number, (n, m, deep) in enumerate(product(slabs[one], slabs[other], slabs[shape.axis])):
        if FULL * most <= n * m * deep <= capacity:
            there = slabs[one][n] * slabs[other][m] * slabs[shape.axis][deep] * math.prod(teams)
            reach = {one: n, other: m, shape.axis: deep}
            cost = there * weights.slab + copies * weights.copy
            yield cost, number, (reach[0], reach[1], reach[2])


def _slabs(boxes: _Boxes, piece: int, capacity: int) -> dict[int, int]:
    """Reaches along an axis that cut what the longest tile sees evenly; how many slabs of each."""
    seen = [last - first for first, last in boxes]
    even = {-(-max(seen) // n) for n in range(1, MOST_CUTS + 1)}
    reaches = {1, min(max(seen), capacity), *(min(-(-n // piece) * piece, max(seen)) for n in even)}
    return {reach: sum(-(-n // reach) for n in seen) for reach in sorted(reaches)}


@lru_cache(maxsize=2**14)
def _wide(across: _Lengths, aside: _Lengths, columns: int) -> int:
    """Columns of all teams, in one slab along them."""
    return sum(m * n * -(-a * b // columns) for a, m in across for b, n in aside)


@lru_cache(maxsize=2**14)
def _deep(along: _Lengths, tokens: int, high: int, weights: Weights) -> float:
    """What a column takes, of all teams and slabs along it."""
    return sum(
        times * (-(-length // high) * (tokens + weights.fragment) + weights.column)
        for length, times in along
    )


@lru_cache(maxsize=2**16)
def _pieces(line: Line, rows: int, teams: int, reach: int, in_step: int) -> _Lengths:
    """What slabs make of the keys of all teams along an axis: lengths of pieces, and how many."""
    first, last, times = _tiles(line, rows, teams)
    low = np.arange(0, last.max(), reach)[:, None, None]
    cut = np.minimum(last, low + reach) - np.maximum(first, low)
    longest = np.maximum.reduceat(cut, range(0, teams, in_step), axis=2)  # they go as far as any
    counts = np.bincount(longest.clip(0).ravel(), np.broadcast_to(times, longest.shape).ravel())
    return tuple((n, int(k) * in_step) for n, k in enumerate(counts.tolist()) if n and k)


@lru_cache(maxsize=2**12)
def _tiles(line: Line, rows: int, teams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kinds of tiles: what each team of one sees, from where to where, and how many there are.

    Of the shapes (kinds, teams) twice, and (kinds, 1); from the first key that a tile sees.
    """
    kinds = Counter[tuple[tuple[int, int], ...]]()
    each = _boxes(line, rows)
    for i, (low, _) in enumerate(_boxes(line, rows * teams)):
        seen = [(first - low, last - low) for first, last in each[i * teams : (i + 1) * teams]]
        kinds[(*seen, *[(0, 0)] * (teams - len(seen)))] += 1
    ends = np.array(list(kinds))
    return ends[..., 0], ends[..., 1], np.array(list(kinds.values()))[:, None]


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

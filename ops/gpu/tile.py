"""How large the tile of a threadgroup is: by counted cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from ...metal import Core
from ..problem import Problem
from .core import PRODUCT, SMALL_GROUP, Held, choose_core, in_parts
from .device import Device
from .params import padded
from .shapes import NO_LIMIT, Axes, Shape, fragments, lay_teams, slabs, team_counts
from .walks import lay_out

PAD_BYTES = 16  # between the rows of a slab (metal/fragment.h)

# Where threadgroups are laid out by what their processor has.
OTHER_REGISTERS = 66  # of a thread, beside what it holds of its rows
MOST_REGISTERS = 220  # by this count, before some are spilled
SHAPES_TRIED = 4  # of those that a core has
WAITING = 4  # simdgroups of a processor that wait for something, of however many
FEW_SLABS = 10.5  # up to so many of a tile's keys are not worth a second buffer
FEW_TOKENS = 32  # of a slab, for which Metal's threadgroups have all of their memory
LARGEST_SLAB = 128  # tokens; larger ones are cut worse

WIDEST_PLANES = 128  # channels of a row, where a team has four simdgroups
TOUR_BYTES = 384  # of threadgroup memory: what a tile's threads share beside slabs (metal/slab.h),
SEEN_BYTES = 48  # and what each team does


class Share(NamedTuple):
    """What a threadgroup has of its processor.

    Attributes:
        threads: Of the largest threadgroup.
        resident: Threadgroups that the processor is to hold at once.
        buffers: Slabs that it has room for.
        slab_bytes: Of each.
    """

    threads: int
    resident: int
    buffers: int
    slab_bytes: int


@dataclass(frozen=True)
class Tile:
    """What a threadgroup works on: queries, or keys in the pass over keys.

    Attributes:
        core: Who multiplies.
        shape: Of what a team works on.
        teams: Of the threadgroup, on each axis.
        share: Of its processor.
        reach: Tokens of a slab on each axis, at most.
    """

    core: Core
    shape: Shape
    teams: Axes
    share: Share
    reach: Axes = NO_LIMIT

    def is_deep_in(self, capacity: int, kernel: Axes) -> bool:
        """Whether slabs of so many tokens hold all of a column's, as wide as fragments are.

        The small teams of a simdgroup lie along the columns: a slab that cuts these has some wait.
        """
        axis = self.shape.axis
        depth = self.rows[axis] + kernel[axis] - 1
        return depth * self.core.tokens // self.shape.high <= capacity

    @property
    def rows(self) -> Axes:
        """On each axis."""
        z, y, x = (q * g for q, g in zip(self.shape.rows, self.teams, strict=True))
        return z, y, x

    def counts(self, sizes: Axes) -> Axes:
        """Tiles on each axis that cover `sizes` tokens."""
        z, y, x = (-(-size // rows) for size, rows in zip(sizes, self.rows, strict=True))
        return z, y, x


def choose_tile(
    problem: Problem,
    device: Device,
    sizes: Axes,
    maps: int,
    *,
    dim: int,
    by_key: bool,
    channels: int,
    held: Held,
    bins: int,
) -> Tile:
    """The largest tile of which there are enough, with the core whose walk costs least.

    Args:
        problem: What is computed.
        device: Where.
        sizes: Tokens of a dilation group on each axis.
        maps: Dilation groups of all samples and heads.
        dim: Channels of a row.
        by_key: Whether tiles are of keys.
        channels: See `choose_core`.
        held: What a team holds of its rows.
        bins: Entries of `rpb` that each team had better sum in threadgroup memory.
    """
    volume = problem.neighborhood.volume
    core = choose_core(device, problem.dtype, channels, dim, maps * math.prod(sizes), volume)
    wanted = _Wanted(problem, device, sizes, maps, dim, by_key, held, bins)
    if not device.processor:
        return _by_walks(wanted, core)
    if core is device.core and _serves(core, dim, held, bins):
        cores = [core]
    else:
        able = [c for c in device.cores if c.whole and c.takes(problem.dtype)]
        cores = [c for c in able if _serves(c, dim, held, bins)]
    tiles = chain.from_iterable(_by_cost(wanted, core) for core in cores)
    return min(tiles, key=lambda one: one[0])[1]


class _Wanted(NamedTuple):
    """What tiles are chosen for; see `choose_tile`."""

    problem: Problem
    device: Device
    sizes: Axes
    maps: int
    dim: int
    by_key: bool
    held: Held
    bins: int

    @property
    def windows(self) -> tuple[Axes, Axes]:
        """Their sizes and strides."""
        hood = self.problem.neighborhood
        return padded(hood.kernel_size), padded(hood.window_stride)

    def row_bytes(self, core: Core) -> int:
        """Of a slab: those of keys and values."""
        return 2 * (core.padded(self.dim) * self.problem.dtype.size + PAD_BYTES)

    def shapes(self, core: Core) -> Sequence[Shape]:
        """Of a team, the best first."""
        return fragments(self.problem.rank, self.windows[0], core, self.by_key)

    def share(self, core: Core) -> Share | None:
        """Of a processor, if it has enough of anything."""
        words = self.held.words(self.problem.dtype, core.padded(self.dim), core)
        words += OTHER_REGISTERS + self.held.pairs * core.tokens * core.rows * 3 // (2 * core.lanes)
        shape, row_bytes = self.shapes(core)[0], self.row_bytes(core)
        return _share(self.device, core, words, shape, self.windows[0], row_bytes, self.bins)


def _by_walks(wanted: _Wanted, core: Core) -> Tile:
    """The tile whose walks over the map take least: Metal's."""
    problem, device = wanted.problem, wanted.device
    core = in_parts(problem, device, core, wanted.dim, wanted.held)
    share, shapes = wanted.share(core), wanted.shapes(core)
    assert share  # there is no processor whose registers are counted
    tile = _largest(wanted, core, shapes[0], share)
    enough = -(-device.enough_threadgroups // max(wanted.maps, 1))  # a batch may be empty
    tiles = min(math.prod(tile.counts(wanted.sizes)), enough)
    capacity, teams = share.slab_bytes // wanted.row_bytes(core), math.prod(tile.teams)
    layout = lay_out(problem, tile.core, shapes, teams, capacity, tiles, by_key=wanted.by_key)
    return replace(tile, shape=layout.shape, teams=layout.teams, reach=layout.reach)


def _by_cost(wanted: _Wanted, core: Core) -> Iterator[tuple[float, Tile]]:
    """Tiles of a core, each after what its launch costs on a processor by count: CUDA's."""
    windows = wanted.windows
    core = in_parts(wanted.problem, wanted.device, core, wanted.dim, wanted.held)
    share, row_bytes = wanted.share(core), wanted.row_bytes(core)
    if not share:
        return
    capacity, warps = share.slab_bytes // row_bytes, share.resident * share.threads // 32
    for shape in wanted.shapes(core)[:SHAPES_TRIED]:
        tile = _largest(wanted, core, shape, share)
        if not core.whole and tile.is_deep_in(capacity, windows[0]):
            yield -math.inf, tile
            return
        kv = slabs(wanted.problem.rank, *windows, tile.core, shape, tile.teams, capacity)
        teams = math.prod(tile.counts(wanted.sizes)) * math.prod(tile.teams)
        if not core.plane:  # what a slab doesn't need is cache
            needed = min(_in_steps(math.prod(kv.reach) * row_bytes), share.slab_bytes)
            tile = replace(tile, share=share._replace(slab_bytes=needed))
        yield kv.cost * (1 + WAITING / warps) * teams * core.pace, replace(tile, reach=kv.reach)


def _serves(core: Core, dim: int, held: Held, bins: int) -> bool:
    """Whether a core has a kernel: those that read slabs themselves attend, with rows not too long.

    Sums per relative position are of simdgroups, one after the other.
    """
    sums = not bins or core.lanes <= 32
    return not core.plane or (dim <= WIDEST_PLANES and held is not PRODUCT and sums)


def _largest(wanted: _Wanted, core: Core, shape: Shape, share: Share) -> Tile:
    """The largest tile of which there are enough to keep the whole GPU busy."""
    device, sizes, bins = wanted.device, wanted.sizes, wanted.bins
    if core.threads != share.threads:
        core = replace(core, threads=share.threads)
    rank, kernel = wanted.problem.rank, wanted.windows[0]
    teams = (lay_teams(rank, kernel, shape, n, sizes, core) for n in team_counts(core))
    tiles = [Tile(core, shape, t, share) for t in teams]
    if near := near_bins(device, core, bins):
        tiles = [t for t in tiles if _rounded(bins) * math.prod(t.teams) <= near]
    enough = device.enough_threadgroups
    if device.processor:
        enough = enough * SMALL_GROUP // share.threads
    busy = [t for t in tiles if wanted.maps * math.prod(t.counts(sizes)) >= enough]
    return busy[0] if busy else tiles[-1]


def _share(
    device: Device,
    core: Core,
    words: int,
    shape: Shape,
    kernel: Axes,
    row_bytes: int,
    bins: int,
) -> Share | None:
    """What threadgroups have of a processor: as many of them as its registers serve; None if none.

    Where they serve no third and windows take many slabs, threadgroups are large, so that fewer
    copy the same keys, and the next slab comes while one is computed with.
    """
    processor = device.processor
    if core.plane:  # slabs have as many tokens as its planes
        size = core.plane * row_bytes
        many = processor.registers // (core.threads * words) if processor else 1
        memory = processor.memory_bytes if processor else device.memory_bytes
        return Share(core.threads, max(many, 1), max(min(memory // size, 2), 1), size)
    if not processor:  # registers leave room for three small groups, or for two large ones
        large = core.threads > SMALL_GROUP or (
            core.whole and device.slab_bytes < FEW_TOKENS * row_bytes
        )
        most = device.slab_bytes * (3 if large and not bins else 2) // 2
        return Share(core.threads, 1, 1, min(most, device.memory_bytes - bytes_beside_slabs(core)))
    if words > MOST_REGISTERS and core.tokens != 16 and not core.plane:
        return None
    if core.parts > 1 and core.tokens > 16:  # parts would exchange more than there is memory for
        return None
    resident = min(max(processor.registers // (SMALL_GROUP * words), 2), 5)

    def room(memory: int, resident: int) -> int:
        sums = 4 * max(_rounded(bins) * SMALL_GROUP // 32, 1)
        beside = bytes_beside_slabs(replace(core, threads=SMALL_GROUP)) + sums
        return max(memory // resident - processor.reserved_bytes - beside, row_bytes)

    team = SMALL_GROUP // core.team_threads
    side = float(team) ** (1 / max(sum(k > 1 for k in kernel), 1))
    sizes = zip(kernel, shape.rows, strict=True)
    box = math.prod(k + math.ceil(side * rows) - 1 if k > 1 else 1 for k, rows in sizes)
    few = room(processor.memory_bytes - processor.spare_bytes, resident)
    if core.parts > 1 or resident > 2 or box * row_bytes <= FEW_SLABS * few:
        return Share(SMALL_GROUP, resident, 1, few)
    many = room(processor.memory_bytes, 1) // 2
    return Share(2 * SMALL_GROUP, 1, 2, min(many, LARGEST_SLAB * row_bytes))


def _in_steps(size: int) -> int:
    """A size in bytes, rounded up such that few kernel sizes need kernels of their own."""
    step = max(1 << max(size.bit_length() - 5, 0), 16)
    return -(-size // step) * step


def bytes_beside_slabs(core: Core) -> int:
    """Of threadgroup memory, that a kernel has beside its slabs and bins, at most."""
    teams = core.threads // core.team_threads if core.whole else 1
    return TOUR_BYTES + SEEN_BYTES * teams + _exchanged_bytes(core, core.threads)


def _exchanged_bytes(core: Core, threads: int) -> int:
    """Of two arrays of pairs, twice (metal/parts.h)."""
    pairs = core.height * core.per_row
    return 4 * 2 * 2 * pairs * threads if core.parts > 1 else 8


def near_bins(device: Device, core: Core, bins: int) -> int:
    """Numbers of threadgroup memory in which the teams of any tile can sum; 0 if none can."""
    if not bins:
        return 0
    room = (device.memory_bytes - device.slab_bytes - bytes_beside_slabs(core)) // 4
    return next((n for n in (t * _rounded(bins) for t in team_counts(core)) if n <= room), 0)


def _rounded(bins: int) -> int:
    """Entries of `rpb` as they are built for: a few kernel sizes have the same."""
    return -(-bins // 32) * 32

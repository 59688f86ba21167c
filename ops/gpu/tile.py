"""Who multiplies in a launch, and how large the tile of a threadgroup is: by counted cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx

from ...metal import Core
from ..problem import Problem
from .device import Device
from .params import padded
from .shapes import NO_LIMIT, Axes, Shape, fragments, lay_teams, slabs, team_counts
from .walks import lay_out

AT_ONCE = 8  # channels of a row that a lane had better not exceed: 16 bytes of float16
FEW_KEYS = 32  # a fragment of neural accelerators has as many
PAD_BYTES = 16  # between the rows of a slab (metal/fragment.h)

# Where threadgroups are laid out by what their processor has.
SMALL_GROUP = 128  # threads
OTHER_REGISTERS = 66  # of a thread, beside what it holds of its rows
MOST_REGISTERS = 220  # by this count, before some are spilled
SHAPES_TRIED = 4  # of those that a core has
WAITING = 4  # simdgroups of a processor that wait for something, of however many
FEW_SLABS = 10.5  # up to so many of a tile's keys are not worth a second buffer
FEW_TOKENS = 32  # of a slab, for which Metal's threadgroups have all of their memory
LARGEST_SLAB = 128  # tokens; larger ones are cut worse

MOST_UNROLLED = 128  # channels of a simdgroup: its loops over them are written out
TEAMS_IN_STEP = 2  # of parts: more of them wait for each other
PART_REGISTERS = 12  # that parts take themselves (scripts/registers.py)
WIDEST_PLANES = 128  # channels of a row, where a team has four simdgroups
WIDEST_PART = 256  # bytes of a row of more than 128 channels, on tensor cores
TOUR_BYTES = 384  # of threadgroup memory: what a tile's threads share beside slabs (metal/slab.h),
SEEN_BYTES = 48  # and what each team does


@dataclass(frozen=True)
class Held:
    """What a kernel holds of each row in registers.

    Attributes:
        arrays: In the dtype of the problem.
        sums: In float32.
        pairs: Arrays of a number for each row and token of a fragment.
        registers: Of 32 bits, that a lane has for them beside all else, where teams are of a few
            lanes and four rows,
        registers_3d: and in 3-D, where there is more of that (scripts/registers.py).
        whole: The same where teams are whole simdgroups, and rows that take more are shared out,
        whole_3d: and in 3-D.
    """

    arrays: int
    sums: int
    pairs: int
    registers: int = 0
    registers_3d: int = 0
    whole: int = 64
    whole_3d: int = 64

    def channels(self, problem: Problem) -> int:
        """How many of a row a lane has registers for."""
        registers = self.registers_3d if problem.rank == 3 else self.registers
        held = self.arrays * problem.dtype.size + self.sums * 4
        return min(registers // held, AT_ONCE)

    def row_bytes(self, dtype: mx.Dtype, dim: int) -> int:
        """Of all arrays and sums of rows with `dim` channels."""
        return (self.arrays * dtype.size + self.sums * 4) * dim

    def fits(self, problem: Problem, dim: int, core: Core) -> bool:
        """Whether a lane of a whole simdgroup has registers for its share of rows."""
        room = self.whole_3d if problem.rank == 3 else self.whole
        room -= PART_REGISTERS if core.parts > 1 else 0
        return self.words(problem.dtype, dim, core) <= room

    def words(self, dtype: mx.Dtype, dim: int, core: Core) -> int:
        """Of each lane."""
        return self.row_bytes(dtype, core.padded(dim)) * core.rows // (4 * core.team_threads)


PRODUCT = Held(arrays=1, sums=1, pairs=1)  # what the separate products hold at most


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
    if not device.processor or (core is device.core and _serves(core, dim, held, bins)):
        cores = [core]
    else:
        able = [c for c in device.cores if c.whole and c.takes(problem.dtype)]
        cores = [c for c in able if _serves(c, dim, held, bins)]
    windows = padded(problem.neighborhood.kernel_size), padded(problem.neighborhood.window_stride)
    found = []
    for core in cores:
        one = in_parts(problem, device, core, dim, held)
        wide = one.padded(dim)
        row_bytes = 2 * (wide * problem.dtype.size + PAD_BYTES)
        shapes = fragments(problem.rank, windows[0], one, by_key)
        words = held.words(problem.dtype, wide, one)
        words += OTHER_REGISTERS + held.pairs * one.tokens * one.rows * 3 // (2 * one.lanes)
        share = _share(device, one, words, shapes[0], windows[0], row_bytes, bins)
        if not share:
            continue
        fitted = one if one.threads == share.threads else replace(one, threads=share.threads)
        capacity = share.slab_bytes // row_bytes
        if not device.processor:
            tile = _largest(
                device, fitted, shapes[0], share, windows, sizes, maps, problem.rank, bins
            )
            enough = -(-device.enough_threadgroups // max(maps, 1))  # a batch may be empty
            tiles = min(math.prod(tile.counts(sizes)), enough)
            teams = math.prod(tile.teams)
            layout = lay_out(problem, fitted, shapes, teams, capacity, tiles, by_key=by_key)
            return replace(tile, shape=layout.shape, teams=layout.teams, reach=layout.reach)
        for shape in shapes[:SHAPES_TRIED]:
            tile = _largest(device, fitted, shape, share, windows, sizes, maps, problem.rank, bins)
            if not one.whole and tile.is_deep_in(capacity, windows[0]):
                return tile
            kv = slabs(problem.rank, *windows, fitted, shape, tile.teams, capacity)
            warps = share.resident * share.threads // 32
            teams = math.prod(tile.counts(sizes)) * math.prod(tile.teams)
            cost = kv.cost * (1 + WAITING / warps) * teams * core.pace
            if not core.plane:  # what a slab doesn't need is cache
                needed = min(_in_steps(math.prod(kv.reach) * row_bytes), share.slab_bytes)
                tile = replace(tile, share=share._replace(slab_bytes=needed))
            found.append((cost, replace(tile, reach=kv.reach)))
    return min(found, key=lambda one: one[0])[1]


def _serves(core: Core, dim: int, held: Held, bins: int) -> bool:
    """Whether a core has a kernel: those that read slabs themselves attend, with rows not too long.

    Sums per relative position are of simdgroups, one after the other.
    """
    sums = not bins or core.lanes <= 32
    return not core.plane or (dim <= WIDEST_PLANES and held is not PRODUCT and sums)


def _largest(
    device: Device,
    core: Core,
    shape: Shape,
    share: Share,
    windows: tuple[Axes, Axes],
    sizes: Axes,
    maps: int,
    rank: int,
    bins: int,
) -> Tile:
    """The largest tile of which there are enough to keep the whole GPU busy."""
    teams = (lay_teams(rank, windows[0], shape, n, sizes, core) for n in team_counts(core))
    tiles = [Tile(core, shape, t, share) for t in teams]
    if near := near_bins(device, core, bins):
        tiles = [t for t in tiles if _rounded(bins) * math.prod(t.teams) <= near]
    enough = device.enough_threadgroups
    if device.processor:
        enough = enough * SMALL_GROUP // share.threads
    busy = [t for t in tiles if maps * math.prod(t.counts(sizes)) >= enough]
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
        own = memory // resident - processor.reserved_bytes - _exchanged_bytes(core, SMALL_GROUP)
        return max(own - (4 * _rounded(bins) * SMALL_GROUP // 32 if bins else 0), row_bytes)

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
    step = max(1 << max(size.bit_length() - 4, 0), 16)
    return -(-size // step) * step


def choose_core(
    device: Device, dtype: mx.Dtype, channels: int, dim: int, rows: int, volume: int
) -> Core:
    """Who multiplies.

    Teams of a few lanes do, where the rows of a team fit into their registers and a lane for each
    row keeps the GPU busy, and else teams of whole simdgroups.

    Args:
        device: Its `cores` are tried in their order.
        dtype: Of the arrays.
        channels: Of each row, how many a lane has registers for; 0 for kernels that write weights
            or sum them per relative position, which takes whole simdgroups.
        dim: Channels of a row.
        rows: Of all heads and samples.
        volume: Keys of a window. Where they are few, single lanes are better than wide fragments,
            which would be masked for the most part.
    """
    if device.core and device.core.takes(dtype) and (channels or device.core.whole):
        return device.core
    cores = [core for core in device.cores if core.takes(dtype)]
    for core in sorted(cores, key=lambda core: core.whole) if volume < FEW_KEYS else cores:
        fits = core.padded(dim) <= channels * core.lanes
        busy = rows >= device.enough_threadgroups * core.threads
        if core.whole or (fits and busy):
            return core
    raise ValueError(f"[choose_core] 'device' must have a core of whole simdgroups: {device}.")


def in_parts(problem: Problem, device: Device, core: Core, dim: int, held: Held) -> Core:
    """The core with teams of as many simdgroups as rows of `dim` channels need.

    Tensor cores sum the same bits in all passes if they sum the same channels: there the number
    depends on nothing that passes don't share.
    """
    if not core.whole or core.on_trial:  # whose pairs are too many to exchange
        return core
    wide = max(problem.head_dim, problem.value_dim)
    parted, most = core, SMALL_GROUP if device.processor else core.threads
    while parted.team_threads < most:
        if device.processor:
            enough = wide <= 128 or parted.parts * WIDEST_PART >= wide * problem.dtype.size
        else:
            few = parted.padded(dim) <= MOST_UNROLLED * parted.parts
            enough = few and held.fits(problem, dim, parted)
        if enough:
            break
        in_step = TEAMS_IN_STEP * 2 * parted.team_threads
        threads = min(in_step, core.threads) if device.processor else core.threads
        parted = replace(core, parts=2 * parted.parts, threads=threads)
    return parted


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

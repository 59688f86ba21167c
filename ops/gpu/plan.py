"""How a problem is laid out on the GPU: tiles and template arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import mlx.core as mx

from ...metal import Core
from ..problem import Problem
from .cuts import MOST_THREADS, Cut, cut_up
from .device import Device
from .params import ONE_TOKEN, Axis, head_params, padded, parameter_block
from .shapes import Axes, Shape, fragment, lay_teams, team_counts

BIAS_THREADGROUPS = 512  # that sum the gradient of rpb, each simdgroup into its own table
MAX_ROWS = 2**31 - 1  # tokens times heads of a sample; all else is counted in 64 bits
MAX_DIM = 512  # a query's row is held in registers

TOUR_BYTES = 128  # of threadgroup memory: what a tile's threads share beside slabs (metal/slab.h)

Argument = mx.Dtype | int | bool


@dataclass(frozen=True)
class Template:
    """The template arguments of a kernel (the first lines of metal/attention_forward.metal).

    ``rows`` is what a team works on: queries, or keys in the pass over keys.

    Attributes:
        dtype: Of the arrays.
        rank: Axes of the problem.
        is_plain: Whether the problem has no options: neither dilation nor strides, causal axes or
            lengths.
        dims: Row lengths of the two arrays that are staged.
        has_rpb: Whether the kernel adds ``rpb``.
        sums_rpb: Whether it sums the gradient of ``rpb``.
        slab_bytes: Of threadgroup memory.
        bins: Numbers of threadgroup memory in which teams sum the gradient of ``rpb``; or 0.
        rows: Of a team, on each axis.
        axis: Of columns (`Shape`).
        high: Rows along it in which the tokens of a fragment lie.
    """

    dtype: mx.Dtype
    rank: int
    is_plain: bool
    dims: tuple[int, int]
    has_rpb: bool
    sums_rpb: bool
    slab_bytes: int
    bins: int
    rows: Axes
    axis: int
    high: int

    @cached_property
    def arguments(self) -> tuple[tuple[str, Argument], ...]:
        """Names and values, as the kernels call them."""
        return (
            ("T", self.dtype),
            ("RANK", self.rank),
            *zip(("D", "DV"), self.dims, strict=True),
            ("PLAIN", self.is_plain),
            ("BIAS", self.has_rpb),
            ("SUMS", self.sums_rpb),
            ("SLAB", self.slab_bytes),
            ("BINS", self.bins),
            *zip(("Q0", "Q1", "Q2"), self.rows, strict=True),
            ("AXIS", self.axis),
            ("HIGH", self.high),
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch of one kernel, but for its arrays.

    Attributes:
        template: Its template arguments.
        params: The parameter block, int32.
        teams: Of a threadgroup.
        threadgroups: Of the launch.
        slices: Threadgroups per head.
        core: Who multiplies.
        resident: Threadgroups that a processor is to hold at once; only CUDA can be told.
        device: What it was planned for.
        cuts: Where it would take too long as one launch, the parts of it, each with its plan.
        built: Kernels that are known to work with it.
    """

    template: Template
    params: mx.array
    teams: int
    threadgroups: int
    slices: int
    core: Core
    resident: int
    device: Device
    cuts: tuple[tuple[Cut, Plan], ...] = ()
    built: set[str] = field(default_factory=set)

    @property
    def shares(self) -> int:
        """Of the gradient of ``rpb``, for each head."""
        return self.slices * self.teams

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.core.lanes * self.teams


@lru_cache(maxsize=4096)
def lay_out(
    problem: Problem,
    device: Device,
    dims: tuple[int, int],
    *,
    scale: float,
    has_rpb: bool = False,
    by_key: bool = False,
    channels: int = 0,
    sums_rpb: bool = False,
    fill: float = 0.0,
) -> Plan:
    """Lays out a launch over tiles of queries, or of keys.

    Args:
        problem: What is computed.
        device: Where.
        dims: Row lengths of the two arrays that are staged.
        scale: Factor of the logits, or of the result.
        has_rpb: Whether the kernel adds ``rpb``.
        by_key: Whether tiles are of keys.
        channels: What single lanes may hold of a row in this kernel; see `choose_core`.
        sums_rpb: Whether the kernel sums the gradient of ``rpb``.
        fill: What is written into the slots of keys that do not exist.
    """
    axes = [Axis.of(problem, a) for a in range(problem.rank)]
    sizes, groups = (padded([a.group_sizes(by_key)[i] for a in axes]) for i in range(2))
    heads = problem.kv_heads if by_key else problem.heads
    bins = math.prod(problem.neighborhood.bias_shape)
    maps = problem.batch * heads * math.prod(groups)
    tile = choose_tile(
        problem,
        device,
        sizes,
        maps,
        dim=max(dims),
        by_key=by_key,
        channels=channels,
        bins=bins if sums_rpb else 0,
    )
    tiles = tile.counts(sizes)
    template = Template(
        dtype=problem.dtype,
        rank=problem.rank,
        is_plain=not problem.has_lengths and all(a.is_plain for a in axes),
        dims=dims,
        has_rpb=has_rpb,
        sums_rpb=sums_rpb,
        slab_bytes=device.slab_bytes,
        bins=_near_bins(device, tile.core, bins) if sums_rpb else 0,
        rows=tile.shape.rows,
        axis=tile.shape.axis,
        high=tile.shape.high,
    )
    many = tile.rows
    rows = padded([a.length if by_key else a.outputs for a in axes])

    def of(cut: Cut) -> Plan:
        samples = cut.samples[1] - cut.samples[0]
        items = samples * math.prod(groups) * math.prod(cut.tiles)
        slices = min(items, -(-BIAS_THREADGROUPS // heads)) if sums_rpb else items
        head = head_params(problem, scale=scale, fill=fill, items=items, bins=bins)
        z, y, x = (n * size for n, size in zip(cut.first, many, strict=True))
        return Plan(
            template=template,
            params=parameter_block(head, axes, cut.tiles, tile.teams, (z, y, x), cut.rows),
            teams=math.prod(tile.teams),
            threadgroups=slices * heads,
            slices=slices,
            core=tile.core,
            resident=_resident(problem.dtype, max(dims)),
            device=device,
        )

    z, y, x = (size * group for size, group in zip(many, groups, strict=True))
    whole = of(cut_up(problem.batch, tiles, 1, (z, y, x), rows)[0])
    pieces = max(
        math.ceil(_multiply_adds(problem, dims) / device.longest_launch),
        math.ceil(whole.threadgroups * whole.threads / MOST_THREADS),
    )
    cuts = cut_up(problem.batch, tiles, pieces, (z, y, x), rows) if pieces > 1 else []
    return replace(whole, cuts=tuple((cut, of(cut)) for cut in cuts)) if len(cuts) > 1 else whole


def _multiply_adds(problem: Problem, dims: tuple[int, int]) -> int:
    """Of a launch, at most: there are two products of rows of each of its arrays."""
    rows = problem.batch * problem.heads * math.prod(problem.out)
    return 2 * sum(dims) * problem.neighborhood.volume * rows


@dataclass(frozen=True)
class Tile:
    """What a threadgroup works on: queries, or keys in the pass over keys.

    Attributes:
        core: Who multiplies.
        shape: Of what a team works on.
        teams: Of the threadgroup, on each axis.
    """

    core: Core
    shape: Shape
    teams: Axes

    @property
    def rows(self) -> Axes:
        """On each axis."""
        z, y, x = (q * g for q, g in zip(self.shape.rows, self.teams, strict=True))
        return z, y, x

    def counts(self, sizes: Axes) -> Axes:
        """Tiles on each axis that cover ``sizes`` tokens."""
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
    bins: int,
) -> Tile:
    """The largest tile of which there are enough.

    Args:
        problem: What is computed.
        device: Where.
        sizes: Tokens of a dilation group on each axis.
        maps: Dilation groups of all samples and heads.
        dim: Channels of a row.
        by_key: Whether tiles are of keys.
        channels: See `choose_core`.
        bins: Entries of ``rpb`` that each team had better sum in threadgroup memory.
    """
    rank, kernel = problem.rank, padded(problem.neighborhood.kernel_size)
    core = choose_core(device, channels, dim, maps * math.prod(sizes))
    shape = fragment(rank, kernel, core, by_key)
    teams = (lay_teams(rank, kernel, shape, n, sizes, core) for n in team_counts(core))
    tiles = [Tile(core, shape, t) for t in teams]
    if near := _near_bins(device, core, bins):
        tiles = [t for t in tiles if _rounded(bins) * math.prod(t.teams) <= near]
    enough = device.enough_threadgroups
    busy = [t for t in tiles if maps * math.prod(t.counts(sizes)) >= enough]
    return busy[0] if busy else tiles[-1]


def smallest(plan: Plan) -> Plan:
    """The same kernel for a problem of one token and one head."""
    head = head_params(ONE_TOKEN, scale=0.0, fill=0.0, items=1, bins=1)
    params = parameter_block(head, [], (1, 1, 1), (1, 1, plan.teams), (0, 0, 0), (1, 1, 1))
    return replace(plan, params=params, threadgroups=1, slices=1, cuts=())


def choose_core(device: Device, channels: int, dim: int, rows: int) -> Core:
    """Who multiplies.

    Teams of a few lanes do, where the rows of a team fit into their registers and a lane for each
    row keeps the GPU busy, and else teams of whole simdgroups.

    Args:
        device: Its ``cores`` are tried in their order.
        channels: Of each row, how many a lane has registers for; 0 for kernels that write weights
            or sum them per relative position, which takes whole simdgroups.
        dim: Channels of a row.
        rows: Of all heads and samples.
    """
    if device.core and (channels or device.core.whole):
        return device.core
    for core in device.cores:
        fits = -(-dim // 8) * 8 <= channels * core.lanes
        busy = rows >= device.enough_threadgroups * core.threads
        if core.whole or (fits and busy):
            return core
    raise ValueError(f"[choose_core] 'device' must have a core of whole simdgroups: {device}.")


def _near_bins(device: Device, core: Core, bins: int) -> int:
    """Numbers of threadgroup memory in which the teams of any tile can sum; 0 if none can."""
    room = (device.memory_bytes - device.slab_bytes - TOUR_BYTES) // 4
    return next((n for n in (t * _rounded(bins) for t in team_counts(core)) if n <= room), 0)


def _rounded(bins: int) -> int:
    """Entries of ``rpb`` as they are built for: a few kernel sizes have the same."""
    return -(-bins // 32) * 32


def _resident(dtype: mx.Dtype, dim: int) -> int:
    """How many threadgroups the registers can serve: a thread holds parts of several rows."""
    row = dtype.size * dim
    return 5 if row <= 64 else 3 if row <= 128 else 1

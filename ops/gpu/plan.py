"""How a problem is laid out on the GPU: template arguments, parameters and launches of a tile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import mlx.core as mx

from ...metal import Core
from ..problem import Problem
from .core import PRODUCT, Held
from .cuts import MOST_THREADS, Cut, cut_up
from .device import BESIDE_KEYS, Device
from .params import ONE_TOKEN, Axis, head_params, padded, parameter_block
from .shapes import Axes
from .tile import Tile, bytes_beside_slabs, choose_tile, near_bins

BIAS_THREADGROUPS = 512  # that sum the gradient of rpb, each simdgroup into its own table
MAX_ROWS = 2**31 - 1  # tokens times heads of a sample; all else is counted in 64 bits
MAX_DIM = 512  # a query's row is held in registers
ONE: Axes = (1, 1, 1)

Argument = mx.Dtype | int | bool


@dataclass(frozen=True)
class Template:
    """The template arguments of a kernel (the first lines of metal/attention_forward.metal).

    `rows` is what a team works on: queries, or keys in the pass over keys.

    Attributes:
        dtype: Of the arrays.
        rank: Axes of the problem.
        is_plain: Whether the problem has no options: neither dilation nor strides, causal axes or
            lengths.
        is_finer: Whether its queries lie on a finer map than its keys.
        dims: Row lengths of the two arrays that are staged.
        has_rpb: Whether the kernel adds `rpb`.
        sums_rpb: Whether it sums the gradient of `rpb`.
        slab_bytes: Of threadgroup memory, for the keys and values that a threadgroup computes with.
        buffers: How many slabs there is room for: with two the next one comes meanwhile.
        bins: Numbers of threadgroup memory in which teams sum the gradient of `rpb`; or 0.
        rows: Of a team, on each axis.
        axis: Of columns (`Shape`).
        high: Rows along it in which the tokens of a fragment lie.
        is_packed: Whether it writes all gradients into one array.
        has_lse: Whether the LSE is an output, or its gradient an input. This and what follows is
            told by arrays.
        has_lengths: Whether there are lengths.
    """

    dtype: mx.Dtype
    rank: int
    is_plain: bool
    is_finer: bool
    dims: tuple[int, int]
    has_rpb: bool
    sums_rpb: bool
    slab_bytes: int
    buffers: int
    bins: int
    rows: Axes
    axis: int
    high: int
    is_packed: bool = False
    has_lse: bool = False
    has_lengths: bool = False

    @cached_property
    def absent(self) -> frozenset[str]:
        """Arrays of kernels that are not there: each that is takes MLX time, filled or not."""
        there = {
            "rpb": self.has_rpb,
            "d_rpb": self.sums_rpb,
            "lengths": self.has_lengths,
            "lse": self.has_lse,
            "d_lse": self.has_lse,
            "d_value": not self.is_packed,
        }
        return frozenset(name for name, is_there in there.items() if not is_there)

    @cached_property
    def arguments(self) -> tuple[tuple[str, Argument], ...]:
        """Names and values, as the kernels call them."""
        return (
            ("T", self.dtype),
            ("RANK", self.rank),
            *zip(("D", "DV"), self.dims, strict=True),
            ("PLAIN", self.is_plain),
            ("FINER", self.is_finer),
            ("BIAS", self.has_rpb),
            ("SUMS", self.sums_rpb),
            ("SLAB", self.slab_bytes),
            ("BUFFERS", self.buffers),
            ("BINS", self.bins),
            *zip(("Q0", "Q1", "Q2"), self.rows, strict=True),
            ("AXIS", self.axis),
            ("HIGH", self.high),
            ("PACKED", self.is_packed),
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
        """Of the gradient of `rpb`, for each head."""
        return self.slices * self.teams

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.core.team_threads * self.teams

    @property
    def memory(self) -> int:
        """Bytes of threadgroup memory that a launch is given for its slabs; only CUDA is asked.

        MLX asks CUDA for more than 48 KB where the slabs alone take more. Where it is what a kernel
        has beside them that does, they are given more than they need.
        """
        if self.device.platform != "cuda":
            return 0
        slabs = self.template.slab_bytes * self.template.buffers
        crosses = slabs <= self.device.memory_bytes < slabs + self.memory_beside_slabs
        return self.device.memory_bytes + 16 if crosses else slabs

    @property
    def memory_beside_slabs(self) -> int:
        """Bytes of threadgroup memory that a kernel declares beside its slabs, at most."""
        return 4 * max(self.template.bins, 1) + bytes_beside_slabs(self.core)


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
    held: Held = PRODUCT,
    sums_rpb: bool = False,
    fill: float = 0.0,
    packed: bool = False,
    has_lse: bool = False,
) -> Plan:
    """Lays out a launch over tiles of queries, or of keys.

    Args:
        problem: What is computed.
        device: Where.
        dims: Row lengths of the two arrays that are staged.
        scale: Factor of the logits, or of the result.
        has_rpb: Whether the kernel adds `rpb`.
        by_key: Whether tiles are of keys.
        channels: What single lanes may hold of a row in this kernel; see `choose_core`.
        held: What a team holds of its rows.
        sums_rpb: Whether the kernel sums the gradient of `rpb`.
        fill: What is written into the slots of keys that do not exist.
        packed: Whether all gradients go into one array.
        has_lse: Whether the kernel has the LSE, or its gradient.
    """
    axes = [Axis.of(problem, a) for a in range(problem.rank)]
    sizes, groups = (padded([a.group_sizes(by_key)[i] for a in axes]) for i in range(2))
    heads = problem.kv_heads if by_key else problem.heads
    bins = math.prod(problem.neighborhood.bias_shape) if sums_rpb else 0
    tile = choose_tile(
        problem,
        device,
        sizes,
        problem.batch * heads * math.prod(groups),
        dim=max(dims),
        by_key=by_key,
        channels=channels,
        held=held,
        bins=bins,
    )
    template = Template(
        dtype=problem.dtype,
        rank=problem.rank,
        is_plain=not problem.has_lengths and all(a.is_plain for a in axes),
        is_finer=bool(problem.finer),
        dims=dims,
        has_rpb=has_rpb,
        sums_rpb=sums_rpb,
        slab_bytes=tile.share.slab_bytes,
        buffers=tile.share.buffers,
        bins=near_bins(device, tile.core, bins),
        rows=tile.shape.rows,
        axis=tile.shape.axis,
        high=tile.shape.high,
        is_packed=packed,
        has_lse=has_lse,
        has_lengths=problem.has_lengths,
    )
    launch = _Launch(problem, device, axes, groups, heads, tile, template, scale, fill)
    rows = padded([a.length if by_key else a.outputs for a in axes])
    return _in_pieces(launch, tile.counts(sizes), rows)


@dataclass(frozen=True, eq=False)
class _Launch:
    """What all parts of a launch have in common.

    Attributes:
        problem: What is computed.
        device: Where.
        axes: Of the problem.
        groups: Dilation groups on each axis.
        heads: That tiles are of.
        tile: Of a threadgroup.
        template: Of the kernel.
        scale: See `lay_out`.
        fill: The same.
    """

    problem: Problem
    device: Device
    axes: list[Axis]
    groups: Axes
    heads: int
    tile: Tile
    template: Template
    scale: float
    fill: float

    @property
    def span(self) -> Axes:
        """Rows of a tile on each axis, those of all dilation groups between them."""
        z, y, x = (size * n for size, n in zip(self.tile.rows, self.groups, strict=True))
        return z, y, x

    def of(self, cut: Cut) -> Plan:
        """The plan of a part of it."""
        samples = cut.samples[1] - cut.samples[0]
        items = samples * math.prod(self.groups) * math.prod(cut.tiles)
        most = -(-BIAS_THREADGROUPS // self.heads)
        slices = min(items, most) if self.template.sums_rpb else items
        bins = math.prod(self.problem.neighborhood.bias_shape)
        head = head_params(self.problem, scale=self.scale, fill=self.fill, items=items, bins=bins)
        z, y, x = (n * size for n, size in zip(cut.first, self.tile.rows, strict=True))
        return Plan(
            template=self.template,
            params=parameter_block(
                head, self.axes, cut.tiles, self.tile.teams, (z, y, x), cut.rows, self.tile.reach
            ),
            teams=math.prod(self.tile.teams),
            threadgroups=slices * self.heads,
            slices=slices,
            core=self.tile.core,
            resident=self.tile.share.resident,
            device=self.device,
        )


def _in_pieces(launch: _Launch, tiles: Axes, rows: Axes) -> Plan:
    """The plan of a launch over so many tiles; and of its parts, if it is too long."""
    batch, device = launch.problem.batch, launch.device
    whole = launch.of(cut_up(batch, tiles, 1, launch.span, rows)[0])
    pieces = max(
        math.ceil(_multiply_adds(launch.problem, launch.template.dims) / device.longest_launch),
        math.ceil(whole.threadgroups * whole.threads / MOST_THREADS),
    )
    cuts = cut_up(batch, tiles, pieces, launch.span, rows) if pieces > 1 else []
    parts = tuple((cut, launch.of(cut)) for cut in cuts)
    return replace(whole, cuts=parts) if len(cuts) > 1 else whole


def _multiply_adds(problem: Problem, dims: tuple[int, int]) -> int:
    """Of a launch, at most: there are two products of rows of each of its arrays."""
    rows = problem.batch * problem.heads * math.prod(problem.out)
    return 2 * sum(dims) * (problem.neighborhood.volume + BESIDE_KEYS) * rows


def smallest(plan: Plan) -> Plan:
    """The same kernel for a problem of one token and one head."""
    head = head_params(ONE_TOKEN, scale=0.0, fill=0.0, items=1, bins=1)
    params = parameter_block(head, [], ONE, (1, 1, plan.teams), (0, 0, 0), ONE, ONE)
    return replace(plan, params=params, threadgroups=1, slices=1, cuts=())

"""How a problem is laid out on the GPU: tiles, template arguments and the parameter block."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import mlx.core as mx

from ...metal import Core, enumerators
from ..neighborhood import Neighborhood
from ..problem import Problem
from .device import Device
from .shapes import Axes, Shape, fragment, lay_teams, team_counts

BIAS_THREADGROUPS = 512  # that sum the gradient of rpb, each simdgroup into its own table
MAX_ROWS = 2**31 - 1  # tokens times heads of a sample; all else is counted in 64 bits
MAX_DIM = 512  # a query's row is held in registers

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
        bins: Entries of ``rpb`` that each team sums in threadgroup memory, rounded up; or 0.
        rows: Of a team, on each axis.
        teams: Of a threadgroup, on each axis.
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
    teams: Axes
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
            *zip(("G0", "G1", "G2"), self.teams, strict=True),
            ("AXIS", self.axis),
            ("HIGH", self.high),
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch of one kernel, but for its arrays.

    Attributes:
        template: Its template arguments.
        params: The parameter block, int32.
        threadgroups: Of the launch.
        slices: Threadgroups per head.
        core: Who multiplies.
        resident: Threadgroups that a processor is to hold at once; only CUDA can be told.
        device: What it was planned for.
        built: Kernels that are known to work with it.
    """

    template: Template
    params: mx.array
    threadgroups: int
    slices: int
    core: Core
    resident: int
    device: Device
    built: set[str] = field(default_factory=set)

    @property
    def teams(self) -> int:
        """Of a threadgroup."""
        return math.prod(self.template.teams)

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
    sizes, groups = (_padded([a.group_sizes(by_key)[i] for a in axes]) for i in range(2))
    heads = problem.kv_heads if by_key else problem.heads
    bins = math.prod(problem.neighborhood.bias_shape)
    kernel = _padded(problem.neighborhood.kernel_size)
    maps = problem.batch * heads * math.prod(groups)
    core = choose_core(device, channels, max(dims), maps * math.prod(sizes))
    shape = fragment(problem.rank, kernel, core, by_key)
    choices = [lay_teams(problem.rank, kernel, shape, n, sizes, core) for n in team_counts(core)]
    if sums_rpb:
        choices = [c for c in choices if _near_bins(device, c, bins)] or choices
    teams = _largest(choices, shape, sizes, maps, device.enough_threadgroups)
    tiles = _tiles(sizes, shape, teams)
    items = maps // heads * math.prod(tiles)
    slices = min(items, -(-BIAS_THREADGROUPS // heads)) if sums_rpb else items
    template = Template(
        dtype=problem.dtype,
        rank=problem.rank,
        is_plain=not problem.has_lengths and all(a.is_plain for a in axes),
        dims=dims,
        has_rpb=has_rpb,
        sums_rpb=sums_rpb,
        slab_bytes=device.slab_bytes,
        bins=_near_bins(device, teams, bins) if sums_rpb else 0,
        rows=shape.rows,
        teams=teams,
        axis=shape.axis,
        high=shape.high,
    )
    head = _head_params(problem, scale=scale, fill=fill, items=items, bins=bins)
    return Plan(
        template=template,
        params=_params(head, axes, tiles),
        threadgroups=slices * heads,
        slices=slices,
        core=core,
        resident=_resident(problem.dtype, max(dims)),
        device=device,
    )


@dataclass(frozen=True)
class Axis:
    """One axis of a problem, as the kernels are told of it."""

    length: int
    outputs: int
    kernel: int
    dilation: int
    stride: int
    window_stride: int
    causal: bool

    @classmethod
    def of(cls, problem: Problem, axis: int) -> Axis:
        """Axis ``axis`` of a problem."""
        hood = problem.neighborhood
        return cls(
            problem.spatial[axis],
            problem.out[axis],
            hood.kernel_size[axis],
            hood.dilation[axis],
            hood.stride[axis],
            hood.window_stride[axis],
            hood.is_causal[axis],
        )

    @property
    def query_groups(self) -> int:
        """Query ``o`` is token ``o * stride``: its dilation group repeats with this period."""
        return self.dilation // math.gcd(self.dilation, self.stride)

    def group_sizes(self, by_key: bool) -> tuple[int, int]:
        """``(tokens of the largest dilation group, groups)`` of the queries or keys."""
        count = self.length if by_key else self.outputs
        groups = self.dilation if by_key else self.query_groups
        return -(-count // groups), groups

    @property
    def is_plain(self) -> bool:
        """Whether it has none of the options."""
        return self.dilation == self.stride == self.window_stride == 1 and not self.causal

    def params(self, tiles: int) -> dict[str, int]:
        """Its part of the parameter block, by the names of ``na_axis_param``."""
        return {
            "NA_LENGTH": self.length,
            "NA_OUTPUTS": self.outputs,
            "NA_KERNEL": self.kernel,
            "NA_DILATION": self.dilation,
            "NA_STRIDE": self.stride,
            "NA_WINDOW_STRIDE": self.window_stride,
            "NA_CAUSAL": int(self.causal),
            "NA_CLASSES": self.query_groups,
            "NA_TILES": tiles,
        }


ONE_TOKEN = Problem(Neighborhood.of(1, 1), 1, (1,), 1, 1, 1, 1, 0.0, mx.float32)


def smallest(plan: Plan) -> Plan:
    """The same kernel for a problem of one token and one head."""
    head = _head_params(ONE_TOKEN, scale=0.0, fill=0.0, items=1, bins=1)
    params = _params(head, [], (1, 1, 1))
    return replace(plan, params=params, threadgroups=1, slices=1)


def _head_params(
    problem: Problem, *, scale: float, fill: float, items: int, bins: int
) -> dict[str, int]:
    """What the parameter block begins with, by the names of ``na_param``."""
    return {
        "NA_HEADS": problem.heads,
        "NA_KV_HEADS": problem.kv_heads,
        "NA_SCALE": _bits(scale),
        "NA_FILL": _bits(fill),
        "NA_RAGGED": int(problem.has_lengths),
        "NA_ITEMS": items,
        "NA_BINS": bins,
        "NA_SHARING": problem.gqa_factor,
    }


def _params(head: Mapping[str, int], axes: Sequence[Axis], tiles: Axes) -> mx.array:
    """The parameter block. Its layout is that of the two enums in metal/tile.h."""
    at, axis_at = enumerators("na_param"), enumerators("na_axis_param")
    first, pitch = at["NA_AXES"], at["NA_AXIS"]
    block = [0] * (first + 3 * pitch)
    for name, value in head.items():
        block[at[name]] = value
    padded = [Axis.of(ONE_TOKEN, 0)] * (3 - len(axes)) + list(axes)
    for a, (axis, count) in enumerate(zip(padded, tiles, strict=True)):
        for name, value in axis.params(count).items():
            block[first + a * pitch + axis_at[name]] = value
    return mx.array(block, mx.int32)


def _padded(values: Sequence[int]) -> Axes:
    """Values per axis with 1 for the axes that a problem of a lower rank has not."""
    z, y, x = [1] * (3 - len(values)) + list(values)
    return z, y, x


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


def _tiles(sizes: Axes, shape: Shape, teams: Axes) -> Axes:
    """Tiles on each axis."""
    z, y, x = (-(-n // (q * g)) for n, q, g in zip(sizes, shape.rows, teams, strict=True))
    return z, y, x


def _largest(choices: list[Axes], shape: Shape, sizes: Axes, maps: int, enough: int) -> Axes:
    """The teams of the largest tile of which there are enough."""
    busy = [c for c in choices if maps * math.prod(_tiles(sizes, shape, c)) >= enough]
    return busy[0] if busy else choices[-1]


def _near_bins(device: Device, teams: Axes, bins: int) -> int:
    """Entries of ``rpb`` to sum in threadgroup memory, rounded up; 0 if they do not fit."""
    rounded = -(-bins // 32) * 32
    fits = device.slab_bytes + 4 * rounded * math.prod(teams) <= device.memory_bytes
    return rounded if fits else 0


def _resident(dtype: mx.Dtype, dim: int) -> int:
    """How many threadgroups the registers can serve: a thread holds parts of several rows."""
    row = dtype.size * dim
    return 5 if row <= 64 else 3 if row <= 128 else 1


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])

"""How a problem is laid out on the GPU: tiles, template arguments and the parameter block."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import mlx.core as mx

from ...metal import MATRIX, SCALAR_4, SCALAR_8, TENSOR, Core
from ..problem import Problem
from .shapes import Axes, fragment, lay_teams, team_counts

BIAS_GROUPS = 512  # threadgroups that sum the gradient of rpb, each simdgroup into its own table
MAX_ROWS = 2**31 - 1  # tokens times heads of a sample; all else is counted in 64 bits
MAX_DIM = 512  # a query's row is held in registers

# Layout of the parameter block: na_param and na_axis_param in metal/tile.h.
AXES_AT, PER_AXIS = 8, 10


def platform() -> str | None:
    """The tier that MLX has a back-end for here: ``"fast_metal"``, ``"cuda"`` or None."""
    if mx.metal.is_available():
        return "fast_metal"
    cuda = getattr(mx, "cuda", None)
    return "cuda" if cuda is not None and cuda.is_available() else None


ON_CUDA = platform() == "cuda"
CORE: Core | None = None  # for all launches that it can serve; None: the best for each
ONLY_MATRICES = False  # on Metal: the device could not build a kernel of single lanes
ENOUGH_GROUPS = 256 if ON_CUDA else 128  # threadgroups that keep all cores of a GPU busy
# Of threadgroup memory. Three threadgroups share the 60 KB of an Apple core, five the 228 KB of an
# NVIDIA one, where a tile of 8 x 8 queries then needs one slab for a window of 7 x 7.
SLAB_BYTES = 36 * 1024 if ON_CUDA else 19 * 1024
MEMORY_BYTES = 48 * 1024 if ON_CUDA else 32 * 1024  # what any threadgroup can have


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch of one kernel, but for its arrays."""

    template: tuple[tuple[str, Any], ...]
    params: mx.array
    groups: int
    threads: int
    teams: int
    slices: int  # threadgroups per head
    core: Core
    resident: int  # threadgroups that a core is to hold at once, on CUDA
    built: set[str] = field(default_factory=set)  # kernels that are known to work

    def __getitem__(self, name: str) -> Any:
        return dict(self.template)[name]


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
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
        dims: Row lengths of the arrays that are staged, the template arguments ``D`` and ``DV``.
        scale: Factor of the logits, or of the result.
        has_rpb: Whether the kernel adds ``rpb``.
        by_key: Whether tiles are of keys.
        channels: What single lanes may hold of a row in this kernel; see `choose_core`.
        sums_rpb: Whether the kernel sums the gradient of ``rpb``.
        fill: What is written into the slots of keys that do not exist.
    """
    rank, bins = problem.rank, math.prod(problem.neighborhood.bias_shape)
    axes = [Axis.of(problem, a) for a in range(rank)]
    sizes = [_padded([a.class_sizes(by_key)[i] for a in axes]) for i in range(2)]
    heads = problem.kv_heads if by_key else problem.heads
    rows = problem.batch * heads * math.prod(sizes[1])
    kernel = _padded(problem.neighborhood.kernel_size)
    core = choose_core(channels, max(dims), rows * math.prod(sizes[0]))
    shape = fragment(rank, kernel, core, by_key)
    queries = shape.queries
    choices = [lay_teams(rank, kernel, shape, count, sizes[0], core) for count in team_counts(core)]
    if sums_rpb:
        choices = [c for c in choices if _near_bins(c, bins)] or choices
    teams = _largest(choices, queries, sizes[0], rows)
    tiles = _tiles(sizes[0], queries, teams)
    items = problem.batch * math.prod(sizes[1]) * math.prod(tiles)
    slices = min(items, -(-BIAS_GROUPS // heads)) if sums_rpb else items
    template: dict[str, Any] = {"T": problem.dtype, "RANK": rank, "D": dims[0], "DV": dims[1]}
    template |= {"PLAIN": not problem.has_lengths and all(a.is_plain for a in axes)}
    template |= {"BIAS": has_rpb, "SUMS": sums_rpb, "SLAB": SLAB_BYTES}
    template |= {"BINS": _near_bins(teams, bins) if sums_rpb else 0}
    template |= dict(zip(("Q0", "Q1", "Q2"), queries, strict=True))
    template |= dict(zip(("G0", "G1", "G2"), teams, strict=True))
    template |= {"AXIS": shape.axis, "HIGH": shape.high}
    head = [problem.heads, problem.kv_heads, _bits(scale), _bits(fill), problem.has_lengths]
    count = math.prod(teams)
    return Plan(
        template=tuple(template.items()),
        params=_params([*head, items, bins, problem.group], axes, tiles),
        groups=slices * heads,
        threads=core.lanes * count,
        teams=count,
        slices=slices,
        core=core,
        resident=_resident(problem.dtype, max(dims)),
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
    def query_classes(self) -> int:
        """Query ``o`` is token ``o * stride``: its dilation class repeats with this period."""
        return self.dilation // math.gcd(self.dilation, self.stride)

    def class_sizes(self, by_key: bool) -> tuple[int, int]:
        """``(tokens of the largest class, classes)`` of the queries or keys."""
        count = self.length if by_key else self.outputs
        classes = self.dilation if by_key else self.query_classes
        return -(-count // classes), classes

    @property
    def is_plain(self) -> bool:
        """Whether it has none of the options."""
        return self.dilation == self.stride == self.window_stride == 1 and not self.causal

    def params(self, tiles: int) -> list[int]:
        """Part of the parameter block."""
        own = [self.length, self.outputs, self.kernel, self.dilation, self.stride]
        return [*own, self.window_stride, int(self.causal), self.query_classes, tiles]


ONE_TOKEN = Axis(1, 1, 1, 1, 1, 1, False)


def smallest(plan: Plan) -> Plan:
    """The same kernel for a problem of one token and one head."""
    params = _params([1, 1, 0, 0, False, 1, 1, 1], [], [1, 1, 1])
    return replace(plan, params=params, groups=1, slices=1)


def _params(head: list[Any], axes: list[Axis], tiles: list[int]) -> mx.array:
    """The parameter block; metal/tile.h has its layout."""
    block = head + [0] * (AXES_AT - len(head))
    for axis, count in zip([ONE_TOKEN] * (3 - len(axes)) + axes, tiles, strict=True):
        block += axis.params(count)
        block += [0] * (-(len(block) - AXES_AT) % PER_AXIS)
    return mx.array(block, mx.int32)


def _padded(values: Sequence[int]) -> Axes:
    """Values per axis with 1 for the axes that a problem of a lower rank has not."""
    z, y, x = [1] * (3 - len(values)) + list(values)
    return z, y, x


def choose_core(channels: int, dim: int, rows: int) -> Core:
    """Who multiplies.

    On CUDA tensor cores do. On Metal single lanes do, where the rows of a team fit into its
    registers and a lane for each row keeps the GPU busy, and else matrices.

    Args:
        channels: Of each row, how many a lane has registers for; 0 for kernels that write weights
            or sum them per relative position, which takes whole simdgroups.
        dim: Channels of a row.
        rows: Of all heads and samples.
    """
    if CORE and (channels or CORE.whole):
        return CORE
    if ON_CUDA:
        return TENSOR
    fitting = [c for c in (SCALAR_4, SCALAR_8) if -(-dim // 8) * 8 <= channels * c.lanes]
    if ONLY_MATRICES or not fitting or rows < ENOUGH_GROUPS * fitting[0].threads:
        return MATRIX
    return fitting[0]


def _tiles(sizes: Axes, queries: Axes, teams: Axes) -> list[int]:
    extents = (q * g for q, g in zip(queries, teams, strict=True))
    return [-(-n // t) for n, t in zip(sizes, extents, strict=True)]


def _largest(choices: list[Axes], queries: Axes, sizes: Axes, rows: int) -> Axes:
    """The largest tile that gives enough threadgroups."""
    busy = [c for c in choices if rows * math.prod(_tiles(sizes, queries, c)) >= ENOUGH_GROUPS]
    return busy[0] if busy else choices[-1]


def _near_bins(teams: Axes, bins: int) -> int:
    """Entries of ``rpb`` to sum in threadgroup memory, rounded up; 0 if they do not fit."""
    rounded = -(-bins // 32) * 32
    fits = SLAB_BYTES + 4 * rounded * math.prod(teams) <= MEMORY_BYTES
    return rounded if fits else 0


def _resident(dtype: mx.Dtype, dim: int) -> int:
    """How many threadgroups the registers can serve: a thread holds parts of several rows."""
    row = dtype.size * dim
    return 5 if row <= 64 else 3 if row <= 128 else 1


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])

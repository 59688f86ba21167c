"""How a problem is laid out on the GPU: tiles, template arguments and the parameter block."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from statistics import fmean
from typing import Any

import mlx.core as mx

from .problem import Problem

Axes = tuple[int, int, int]

# The simdgroups of a threadgroup, from the largest tile to the smallest: a tile reads each key once
# for all its queries, so the largest that still gives every core of the GPU work is taken. 256
# threads are what every Apple GPU can run.
SIMDGROUPS = {1: (8, 4, 2, 1), 2: (4, 2, 1)}
COLUMN_COST = 0.2  # of beginning a column of fragments, in fragments
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
# Height of a fragment in eights, which metal.header() is told: the queries of a simdgroup are the
# eight rows of one of Metal's matrices, the sixteen of one of CUDA's.
ROWS = 2 if ON_CUDA else 1
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
    simdgroups: int
    slices: int  # threadgroups per head
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
        sums_rpb: Whether the kernel sums the gradient of ``rpb``.
        fill: What is written into the slots of keys that do not exist.
    """
    rank, bins = problem.rank, math.prod(problem.neighborhood.bias_shape)
    axes = [Axis.of(problem, a) for a in range(rank)]
    sizes = [_padded([a.class_sizes(by_key)[i] for a in axes]) for i in range(2)]
    heads = problem.kv_heads if by_key else problem.heads
    rows = problem.batch * heads * math.prod(sizes[1])
    kernel = _padded(problem.neighborhood.kernel_size)
    queries, key_rows = fragment(rank, kernel, ROWS, by_key)
    groups = [_simdgroups(rank, kernel, queries, count) for count in SIMDGROUPS[ROWS]]
    simdgroups = _largest(groups, queries, sizes[0], rows, bins if sums_rpb else 0)
    tiles = _tiles(sizes[0], queries, simdgroups)
    items = problem.batch * math.prod(sizes[1]) * math.prod(tiles)
    slices = min(items, -(-BIAS_GROUPS // heads)) if sums_rpb else items
    template: dict[str, Any] = {"T": problem.dtype, "RANK": rank, "D": dims[0], "DV": dims[1]}
    template |= {"PLAIN": not problem.has_lengths and all(a.is_plain for a in axes)}
    template |= {"BIAS": has_rpb, "SUMS": sums_rpb, "SLAB": SLAB_BYTES}
    template |= {"BINS": _near_bins(simdgroups, bins) if sums_rpb else 0}
    template |= dict(zip(("Q0", "Q1", "Q2"), queries, strict=True))
    template |= dict(zip(("G0", "G1", "G2"), simdgroups, strict=True))
    template |= {"E1": key_rows}
    head = [problem.heads, problem.kv_heads, _bits(scale), _bits(fill), problem.has_lengths]
    count = math.prod(simdgroups)
    return Plan(
        template=tuple(template.items()),
        params=_params([*head, items, bins, problem.group], axes, tiles),
        groups=slices * heads,
        threads=32 * count,
        simdgroups=count,
        slices=slices,
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


@lru_cache(maxsize=4096)
def fragment(rank: int, kernel: Axes, rows: int, by_key: bool) -> tuple[Axes, int]:
    """How the tokens of a fragment lie: a simdgroup's queries, and in how many rows eight keys.

    The cheapest queries are those that together see few eights of keys, in few columns
    (metal/walk.h); ``rows`` fragments of a column are computed at once. Counted over a whole map,
    and with queries and keys in each other's places for tiles of keys: near a border fewer keys are
    seen, but more queries see a key.
    """

    def cost(shape: tuple[Axes, int]) -> tuple[float, float]:
        queries, high = shape
        extents = [_extents(k, q, by_key) for q, k in zip(queries, kernel, strict=True)][3 - rank :]
        deep = (8 if rank == 1 else high) * rows
        depth = fmean(-(-n // deep) for n in extents[0])
        columns = fmean(-(-math.prod(x) * high // 8) for x in product(*extents[1:]))
        seen = math.prod(map(fmean, extents))
        return depth * columns * rows + COLUMN_COST * columns, seen

    # The two tokens of a lane are neighbors across columns, and in 3-D slabs have too few layers.
    heights = (1, 2, 4) if rank == 2 else (1,)
    return min(product(_boxes(8 * rows, rank), heights), key=cost)


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


def _tiles(sizes: Axes, queries: Axes, simdgroups: Axes) -> list[int]:
    extents = (q * g for q, g in zip(queries, simdgroups, strict=True))
    return [-(-n // t) for n, t in zip(sizes, extents, strict=True)]


def _simdgroups(rank: int, kernel: Axes, queries: Axes, count: int) -> Axes:
    """How simdgroups lie in a tile: such that it sees the fewest keys."""

    def seen(simdgroups: Axes) -> int:
        axes = zip(queries, simdgroups, kernel, strict=True)
        return math.prod(q * g + k - 1 for q, g, k in axes)

    return min(_boxes(count, rank), key=seen)


def _largest(groups: list[Axes], queries: Axes, sizes: Axes, rows: int, bins: int) -> Axes:
    """The largest tile that gives enough threadgroups and, if it can be, room for the bins."""
    fitting = [g for g in groups if not bins or _near_bins(g, bins)] or groups
    busy = [g for g in fitting if rows * math.prod(_tiles(sizes, queries, g)) >= ENOUGH_GROUPS]
    return busy[0] if busy else fitting[-1]


def _near_bins(simdgroups: Axes, bins: int) -> int:
    """Entries of ``rpb`` to sum in threadgroup memory, rounded up; 0 if they do not fit."""
    rounded = -(-bins // 32) * 32
    fits = SLAB_BYTES + 4 * rounded * math.prod(simdgroups) <= MEMORY_BYTES
    return rounded if fits else 0


def _resident(dtype: mx.Dtype, dim: int) -> int:
    """How many threadgroups the registers can serve: a thread holds parts of several rows."""
    row = dtype.size * dim
    return 5 if row <= 64 else 3 if row <= 128 else 1


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])

"""How a problem is laid out on the GPU: tiles, template arguments and the parameter block."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import mlx.core as mx

from .problem import Problem

Axes = tuple[int, int, int]

# The queries of a simdgroup: the eight rows of one of Metal's matrices, the sixteen of one of
# CUDA's. metal.header() is told how many eights.
FRAGMENT: dict[int, dict[int, Axes]] = {
    1: {1: (1, 1, 8), 2: (1, 2, 4), 3: (2, 2, 2)},
    2: {1: (1, 1, 16), 2: (1, 4, 4), 3: (2, 2, 4)},
}
# The simdgroups of a threadgroup from the largest tile to the smallest: a tile reads each key once
# for all its queries, so the largest that still gives every core of the GPU work is taken. 256
# threads are what every Apple GPU can run.
SIMDGROUPS: dict[int, dict[int, tuple[Axes, ...]]] = {
    1: {
        1: ((1, 1, 8), (1, 1, 4), (1, 1, 2), (1, 1, 1)),
        2: ((1, 4, 2), (1, 2, 2), (1, 2, 1), (1, 1, 1)),
        3: ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1)),
    },
    2: {
        1: ((1, 1, 4), (1, 1, 2), (1, 1, 1)),
        2: ((1, 2, 2), (1, 2, 1), (1, 1, 1)),
        3: ((2, 2, 1), (1, 2, 1), (1, 1, 1)),
    },
}
ENOUGH_GROUPS = 128  # threadgroups that keep a GPU of up to 40 cores busy
SLAB_BYTES = 19 * 1024  # three threadgroups then share the 60 KB of a core
MEMORY_BYTES = 32 * 1024  # of a threadgroup, on every Apple GPU
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


ROWS = 2 if platform() == "cuda" else 1


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch of one kernel, but for its arrays."""

    template: tuple[tuple[str, Any], ...]
    params: mx.array
    groups: int
    threads: int
    simdgroups: int
    slices: int  # threadgroups per head
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
    simdgroups = _simdgroups(rank, sizes[0], rows, bins if sums_rpb else 0)
    tiles = _tiles(rank, sizes[0], simdgroups)
    items = problem.batch * math.prod(sizes[1]) * math.prod(tiles)
    slices = min(items, -(-BIAS_GROUPS // heads)) if sums_rpb else items
    template: dict[str, Any] = {"T": problem.dtype, "RANK": rank, "D": dims[0], "DV": dims[1]}
    template |= {"BIAS": has_rpb, "SUMS": sums_rpb, "SLAB": SLAB_BYTES}
    template |= {"BINS": _near_bins(simdgroups, bins) if sums_rpb else 0}
    template |= dict(zip(("Q0", "Q1", "Q2"), FRAGMENT[ROWS][rank], strict=True))
    template |= dict(zip(("G0", "G1", "G2"), simdgroups, strict=True))
    head = [problem.heads, problem.kv_heads, _bits(scale), _bits(fill), problem.has_lengths]
    count = math.prod(simdgroups)
    return Plan(
        template=tuple(template.items()),
        params=_params([*head, items, bins], axes, tiles),
        groups=slices * heads,
        threads=32 * count,
        simdgroups=count,
        slices=slices,
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

    def params(self, tiles: int) -> list[int]:
        """Part of the parameter block."""
        own = [self.length, self.outputs, self.kernel, self.dilation, self.stride]
        return [*own, self.window_stride, int(self.causal), self.query_classes, tiles]


ONE_TOKEN = Axis(1, 1, 1, 1, 1, 1, False)


def smallest(plan: Plan) -> Plan:
    """The same kernel for a problem of one token and one head."""
    params = _params([1, 1, 0, 0, False, 1, 1], [], [1, 1, 1])
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


def _tiles(rank: int, sizes: Axes, simdgroups: Axes) -> list[int]:
    extents = (q * g for q, g in zip(FRAGMENT[ROWS][rank], simdgroups, strict=True))
    return [-(-n // t) for n, t in zip(sizes, extents, strict=True)]


def _simdgroups(rank: int, sizes: Axes, rows: int, bins: int) -> Axes:
    """The largest tile that gives enough threadgroups and, if it can be, room for the bins."""
    choices = SIMDGROUPS[ROWS][rank]
    fitting = [g for g in choices if not bins or _near_bins(g, bins)] or list(choices)
    busy = [g for g in fitting if rows * math.prod(_tiles(rank, sizes, g)) >= ENOUGH_GROUPS]
    return busy[0] if busy else fitting[-1]


def _near_bins(simdgroups: Axes, bins: int) -> int:
    """Entries of ``rpb`` to sum in threadgroup memory, rounded up; 0 if they do not fit."""
    rounded = -(-bins // 32) * 32
    fits = SLAB_BYTES + 4 * rounded * math.prod(simdgroups) <= MEMORY_BYTES
    return rounded if fits else 0


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])

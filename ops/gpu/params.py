"""The parameter block: what the kernels of metal/ are told of a problem at run time."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...metal import enumerators
from ..neighborhood import Neighborhood
from ..problem import Problem
from .shapes import Axes


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
    finer: int

    @classmethod
    def of(cls, problem: Problem, axis: int) -> Axis:
        """Axis `axis` of a problem."""
        hood = problem.neighborhood
        return cls(
            problem.spatial[axis],
            problem.out[axis],
            hood.kernel_size[axis],
            hood.dilation[axis],
            hood.stride[axis],
            hood.window_stride[axis],
            hood.is_causal[axis],
            problem.finer[axis] if problem.finer else 1,
        )

    @property
    def query_groups(self) -> int:
        """Query `o` is token `o * stride`: its dilation group repeats with this period."""
        return self.dilation // math.gcd(self.dilation, self.stride)

    def group_sizes(self, by_key: bool) -> tuple[int, int]:
        """`(tokens of the largest dilation group, groups)` of the queries or keys."""
        count = self.length if by_key else self.outputs
        groups = self.dilation if by_key else self.query_groups
        return -(-count // groups), groups

    @property
    def is_plain(self) -> bool:
        """Whether it has none of the options."""
        return self.dilation == self.stride == self.window_stride == 1 and not self.causal

    def params(self, tiles: int, teams: int, start: int, own: int, reach: int) -> dict[str, int]:
        """Its part of the parameter block, by the names of `na_axis_param`."""
        return {
            "NA_LENGTH": self.length,
            "NA_OUTPUTS": self.outputs * self.finer,
            "NA_KERNEL": self.kernel,
            "NA_DILATION": self.dilation,
            "NA_STRIDE": self.stride,
            "NA_WINDOW_STRIDE": self.window_stride,
            "NA_CAUSAL": int(self.causal),
            "NA_CLASSES": self.query_groups,
            "NA_TILES": tiles,
            "NA_TEAMS": teams,
            "NA_START": start,
            "NA_OWN": own,
            "NA_REACH": reach,
            "NA_FINER": self.finer,
            "NA_QUERIES": own * self.finer,
        }


ONE_TOKEN = Problem(Neighborhood.of(1, 1), 1, (1,), 1, 1, 1, 1, 0.0, mx.float32)


def head_params(
    problem: Problem, *, scale: float, fill: float, items: int, bins: int
) -> dict[str, int]:
    """What the parameter block begins with, by the names of `na_param`."""
    return {
        "NA_HEADS": problem.heads,
        "NA_KV_HEADS": problem.kv_heads,
        "NA_SCALE": _bits(scale),
        "NA_FILL": _bits(fill),
        "NA_RAGGED": int(problem.has_lengths),
        "NA_ITEMS": items,
        "NA_BINS": bins,
        "NA_SHARING": problem.gqa_factor,
        "NA_QUERY_HEADS": problem.queries[-1],
    }


def parameter_block(
    head: Mapping[str, int],
    axes: Sequence[Axis],
    tiles: Axes,
    teams: Axes,
    starts: Axes,
    own: Axes,
    reach: Axes,
) -> mx.array:
    """The parameter block. Its layout is that of the two enums in metal/tile.h.

    Args:
        head: What `head_params` makes.
        axes: Of the problem.
        tiles: On each axis.
        teams: Of a threadgroup, on each axis.
        starts: Rank of the first one's first row.
        own: Rows of the arrays that have one for each of a tile's rows.
        reach: Tokens of a slab on each axis, at most.
    """
    at, axis_at = enumerators("na_param"), enumerators("na_axis_param")
    first, pitch = at["NA_AXES"], at["NA_AXIS"]
    block = [0] * (first + 3 * pitch)
    for name, value in head.items():
        block[at[name]] = value
    all_axes = [Axis.of(ONE_TOKEN, 0)] * (3 - len(axes)) + list(axes)
    launch = zip(all_axes, tiles, teams, starts, own, reach, strict=True)
    for a, (axis, *counts) in enumerate(launch):
        for name, value in axis.params(*counts).items():
            block[first + a * pitch + axis_at[name]] = value
    return mx.array(block, mx.int32)


def padded(values: Sequence[int]) -> Axes:
    """Values per axis with 1 for the axes that a problem of a lower rank has not."""
    z, y, x = [1] * (3 - len(values)) + list(values)
    return z, y, x


def _bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])

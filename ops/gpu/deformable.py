"""Launching the kernels of deformable attention (metal/deformable.py)."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any

import mlx.core as mx

from ...metal import body
from ...metal.deformable import FLOAT32, INT32, KERNELS, THREADS, header
from ...metal.excerpt import excerpt
from .device import platform

log = logging.getLogger(__name__)

# Channels that a thread has, where there are so many.
CHANNELS = 4
Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """What a launch depends on.

    Attributes:
        batch: Images.
        tokens: Of all maps.
        queries: That look at them.
        heads: Of both.
        channels: Of a head.
        points: Per map.
        sizes: Height and width of each map.
        dtype: Of values and weights.
    """

    batch: int
    tokens: int
    queries: int
    heads: int
    channels: int
    points: int
    sizes: Sizes
    dtype: mx.Dtype

    @classmethod
    def of(cls, values: mx.array, points: mx.array, sizes: Sizes) -> Layout:
        """Of `values [B, N, M, D]` and `points [B, Q, M, L, P, 2]`."""
        batch, tokens, heads, channels = values.shape
        return cls(
            batch, tokens, points.shape[1], heads, channels, points.shape[4], sizes, values.dtype
        )

    @property
    def rows(self) -> int:
        """Queries of all heads."""
        return self.batch * self.queries * self.heads

    @property
    def samples(self) -> int:
        """Points of all queries."""
        return self.rows * len(self.sizes) * self.points

    @property
    def squares(self) -> int:
        """Of four pixels, on all maps with a ring around each."""
        return sum((height + 1) * (width + 1) for height, width in self.sizes)

    @property
    def lanes(self) -> int:
        """Threads that share a row: a power of two."""
        wanted = -(-self.channels // CHANNELS)
        return min(32, 1 << (wanted - 1).bit_length())

    @property
    def largest(self) -> int:
        """Of the numbers that kernels count with."""
        values = self.batch * self.tokens * self.heads * self.channels
        keys = self.batch * self.heads * self.squares
        return max(values, self.rows * self.channels, 2 * self.samples, keys)


def why_not(layout: Layout) -> str | None:
    """Why the kernels can't compute this here; None if they can."""
    on = platform()
    if on is None or mx.default_device().type != mx.gpu:
        return "there is no GPU, or it is not the default device"
    if layout.largest >= 2**31:
        return "it has more than 2^31 numbers"
    if not layout.largest or not layout.channels:
        return "it is empty"
    template = layout.dtype, layout.channels, len(layout.sizes), layout.points
    return _trial(on, mx.fast.metal_kernel if on == "fast_metal" else None, *template)


def forward(layout: Layout, values: mx.array, points: mx.array, weights: mx.array) -> mx.array:
    """Samples `[B, Q, M, D]`."""
    shape = (layout.batch, layout.queries, layout.heads, layout.channels)
    inputs = {"values": values, "points": points, "weights": weights}
    return _run("deformable_forward", layout, layout.rows, inputs, [shape])[0]


def backward(
    layout: Layout, values: mx.array, points: mx.array, weights: mx.array, d_out: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of values, points and weights."""
    inputs = {"values": values, "points": points, "weights": weights, "d_out": d_out}
    shapes = [points.shape, weights.shape]
    d_points, d_weights = _run("deformable_backward_point", layout, layout.rows, inputs, shapes)
    keys = squares_of(layout, points)
    order = mx.argsort(keys).astype(mx.int32)
    inputs |= {"keys": keys[order], "order": order}
    pixels = layout.batch * layout.tokens * layout.heads
    [d_values] = _run("deformable_backward_value", layout, pixels, inputs, [values.shape])
    return d_values, d_points, d_weights


def squares_of(layout: Layout, points: mx.array) -> mx.array:
    """The number of the square of four pixels that each sample is in, int32 `[samples]`.

    Squares are counted through all maps, heads and images, with the ring of zeros around each map.
    """
    ends = mx.array([(width, height) for height, width in layout.sizes], mx.float32)[:, None]
    corner = mx.minimum(mx.floor(mx.clip(points, -1, ends)), ends - 1).astype(mx.int32) + 1
    starts, before = [], 0
    for height, width in layout.sizes:
        starts.append(before)
        before += (height + 1) * (width + 1)
    pitch = mx.array([width + 1 for _, width in layout.sizes], mx.int32)[:, None]
    square = mx.array(starts, mx.int32)[:, None] + corner[..., 1] * pitch + corner[..., 0]
    which = mx.arange(layout.batch)[:, None] * layout.heads + mx.arange(layout.heads)  # [B, M]
    which = which.astype(mx.int32)[:, None, :, None, None]
    return (which * layout.squares + square).reshape(-1)


def _run(
    name: str,
    layout: Layout,
    rows: int,
    arrays: dict[str, mx.array],
    shapes: Sequence[Sequence[int]],
) -> list[mx.array]:
    on = platform()
    build = mx.fast.cuda_kernel if on == "cuda" else mx.fast.metal_kernel
    numbers = layout.queries, layout.tokens, layout.heads, rows, layout.samples
    arrays |= {"maps": _maps(layout.sizes), "params": mx.array(numbers, mx.int32)}
    inputs, outputs = KERNELS[name]
    template: list[Any] = [
        ("T", layout.dtype),
        ("D", layout.channels),
        ("LEVELS", len(layout.sizes)),
        ("POINTS", layout.points),
        ("LANES", layout.lanes),
    ]
    groups = -(-rows // (THREADS // layout.lanes))
    result: list[mx.array] = _built(build, name, "cuda" if on == "cuda" else "metal", layout.lanes)(
        inputs=[arrays[array] for array in inputs],
        template=template,
        grid=(groups * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[tuple(shape) for shape in shapes],
        output_dtypes=[dtype_of(array, layout.dtype) for array in outputs],
    )
    return result


def dtype_of(array: str, dtype: mx.Dtype) -> mx.Dtype:
    """Of an array of a kernel, by its name."""
    return mx.int32 if array in INT32 else mx.float32 if array in FLOAT32 else dtype


@cache
def _built(build: Any, name: str, dialect: str, lanes: int) -> Any:
    inputs, outputs = KERNELS[name]
    before, text = excerpt(header(dialect, lanes), body(name))
    # MLX keeps what it has built by name: another text needs another name.
    digest = hashlib.sha256((before + text).encode()).hexdigest()[:12]
    return build(
        name=f"natten_zoo_{name}_{digest}",
        input_names=[*inputs],
        output_names=[*outputs],
        source=text,
        header=before,
    )


@cache
def _maps(sizes: Sizes) -> mx.array:
    """Height, width and first token of each map; as many numbers as MLX wants for an array."""
    firsts = [sum(math.prod(size) for size in sizes[:level]) for level in range(len(sizes))]
    rows = [(*size, first) for size, first in zip(sizes, firsts, strict=True)]
    return mx.array(rows, mx.int32)


_trying = RLock()


def _trial(
    on: str, build: Any, dtype: mx.Dtype, channels: int, levels: int, points: int
) -> str | None:
    with _trying:  # one thread builds, and says so if it fails
        return _tried(on, build, dtype, channels, levels, points)


@cache
def _tried(
    on: str, build: Any, dtype: mx.Dtype, channels: int, levels: int, points: int
) -> str | None:
    """Builds all kernels by running them on a pixel: MLX builds late, where no one falls back."""
    layout = Layout(1, levels, 1, 1, channels, points, ((1, 1),) * levels, dtype)
    values, places = (
        mx.zeros((1, levels, 1, channels), dtype),
        mx.zeros((1, 1, 1, levels, points, 2)),
    )
    weights, out = mx.zeros(places.shape[:-1], dtype), mx.zeros((1, 1, 1, channels), dtype)
    try:
        mx.eval(forward(layout, values, places, weights))
        mx.eval(backward(layout, values, places, weights, out))
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        log.warning("natten_zoo: deformable attention cannot be built: %s. Falling back.", why)
        return f"a kernel cannot be built on this device: {why}"
    return None

"""Sampling maps at points between their pixels, as deformable attention does it.

On a GPU a kernel does it (`gpu/deformable.py`), else MLX's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from .backend import get_backend
from .exports import export_target
from .gpu import deformable as kernels
from .gpu.deformable import Layout, Sizes
from .problem import DTYPES

# Samples are gathered for at most this many numbers at a time, so that memory does not grow with
# the image: 16 MiB in float32.
CHUNK = 2**22


def sample_maps(
    values: mx.array, points: mx.array, weights: mx.array, sizes: Sequence[tuple[int, int]]
) -> mx.array:
    r"""Weighted sums of the values of several maps between their pixels.

    $$o_{qm} = \sum_{l,p} a_{qmlp} \, v_{lm}(x_{qmlp})$$

    with $v$ interpolated between the four nearest pixels, zeros around each map. Where the tier is
    chosen automatically (or forced to be the GPU's) and the GPU is the default device, kernels
    compute it and its gradients, without atomics, so that they are the same in every run; they have
    no forward-mode derivative. Else, in `natten_zoo.ops.exporting`, and where there are 2^31
    numbers or more, MLX's operations do.

    Args:
        values: `[batch, tokens, heads, channels]`, the tokens of all maps one after the other,
            each map row by row.
        points: `[batch, queries, heads, maps, points, 2]`, x before y in pixels of the map:
            (0, 0) is the center of its first pixel. They must be numbers.
        weights: `[batch, queries, heads, maps, points]`.
        sizes: Height and width of each map.

    Returns:
        `[batch, queries, heads, channels]` in the dtype of `values`.

    Raises:
        ValueError: Shapes do not go together.

    Examples:
        >>> values = mx.array([4.0, 8.0, 1.0]).reshape(1, 3, 1, 1)  # maps of 1 x 2 and 1 x 1
        >>> points = mx.array([[[0.5, 0.0]], [[0.0, 0.0]]]).reshape(1, 1, 1, 2, 1, 2)
        >>> sample_maps(values, points, mx.ones((1, 1, 1, 2, 1)), [(1, 2), (1, 1)]).item()
        7.0
    """
    shapes: Sizes = tuple((int(height), int(width)) for height, width in sizes)
    _check(values, points, weights, shapes)
    points = points.astype(mx.float32)
    if why_not(values, points, shapes) is None:
        result: mx.array = _with_kernels(shapes)(values, points, weights.astype(values.dtype))
        return result
    parts = [
        sample(value, points[:, :, :, level], weights[:, :, :, level])
        for level, value in enumerate(_split(values, shapes))
    ]
    return sum(parts[1:], parts[0])


def why_not(values: mx.array, points: mx.array, sizes: Sizes) -> str | None:
    """Why no kernel samples these maps here and now; None if one does."""
    if get_backend() not in ("auto", "fast_metal", "cuda"):
        return f"the tier is forced to be {get_backend()}"
    if export_target() is not None:
        return "it is being exported"
    if values.dtype not in DTYPES:
        return f"there is none for {values.dtype}"
    return kernels.why_not(Layout.of(values, points, sizes))


@lru_cache(maxsize=64)
def _with_kernels(sizes: Sizes) -> Any:
    """The sampling of maps of these sizes by kernels, with its gradients."""

    @mx.custom_function
    def function(values: mx.array, points: mx.array, weights: mx.array) -> mx.array:
        return kernels.forward(Layout.of(values, points, sizes), values, points, weights)

    @function.vjp
    def vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        values, points, weights = primals
        layout = Layout.of(values, points, sizes)
        return kernels.backward(layout, values, points, weights, cotangent.astype(values.dtype))

    return function


def _check(values: mx.array, points: mx.array, weights: mx.array, sizes: Sizes) -> None:
    tokens = sum(math.prod(size) for size in sizes)
    if values.ndim != 4 or values.shape[1] != tokens:
        raise ValueError(
            f"[sample_maps] 'values' must be [batch, {tokens}, heads, channels] for maps of "
            f"{list(sizes)} but got {list(values.shape)}."
        )
    batch, _, heads, _ = values.shape
    found = points.shape
    if points.ndim != 6 or (found[0], *found[2:4], found[5]) != (batch, heads, len(sizes), 2):
        raise ValueError(
            f"[sample_maps] 'points' must be [{batch}, queries, {heads}, {len(sizes)}, points, 2] "
            f"but got {list(found)}."
        )
    if weights.shape != found[:-1]:
        raise ValueError(
            f"[sample_maps] 'weights' must be {list(found[:-1])} but got {list(weights.shape)}."
        )


def sample(values: mx.array, points: mx.array, weights: mx.array) -> mx.array:
    """Weighted sums of a map's values between its pixels; there are zeros around the map.

    Args:
        values: `[batch, height, width, heads, channels]`.
        points: `[batch, queries, heads, points, 2]`, x before y in pixels: (0, 0) is the center
            of the first pixel.
        weights: `[batch, queries, heads, points]`.

    Returns:
        `[batch, queries, heads, channels]`.

    Examples:
        >>> row = mx.array([4.0, 8.0]).reshape(1, 1, 2, 1, 1)
        >>> points = mx.array([[0, 0], [0.5, 0], [-0.5, 0], [9, 0]]).reshape(1, 4, 1, 1, 2)
        >>> sample(row, points, mx.ones((1, 4, 1, 1))).flatten().tolist()
        [4.0, 6.0, 2.0, 0.0]
    """
    batch, height, width, heads, channels = values.shape
    rows, columns = height + 1, width + 1  # places for squares of four, the zeros around included
    ringed = mx.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0)])
    upper, lower = ringed[:, :-1], ringed[:, 1:]
    squares = [upper[:, :, :-1], upper[:, :, 1:], lower[:, :, :-1], lower[:, :, 1:]]
    table = mx.concatenate(squares, axis=-1).reshape(-1, 4 * channels)
    # Beyond the ring of zeros all is zero, so points are moved back onto it.
    ends = mx.array([width, height])
    place = mx.clip(points.astype(mx.float32), -1, ends)
    corner = mx.stop_gradient(mx.minimum(mx.floor(place), ends - 1))
    right, down = mx.split(place - corner, 2, axis=-1)  # [B, N, M, P, 1]
    near = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]
    shares = mx.concatenate(near, axis=-1) * weights[..., None]
    shares = shares.astype(values.dtype).flatten(-2)[..., None, :]  # [B, N, M, 1, 4 P]
    index = corner.astype(mx.int32) + 1
    index = index[..., 1] * columns + index[..., 0]
    index = index + (mx.arange(batch) * rows * columns).reshape(-1, 1, 1, 1)
    index = index * heads + mx.arange(heads)[:, None]  # [B, N, M, P]
    step = max(1, CHUNK // math.prod((batch, *shares.shape[2:], channels)))
    parts = []
    for start in range(0, points.shape[1], step):
        here = shares[:, start : start + step]
        found = mx.take(table, index[:, start : start + step], axis=0)  # [B, n, M, P, 4 D]
        parts.append((here @ found.reshape(*here.shape[:3], -1, channels)).squeeze(-2))
    return mx.concatenate(parts, axis=1)


def _split(values: mx.array, sizes: Sizes) -> list[mx.array]:
    """Tokens `[batch, tokens, heads, channels]` as maps."""
    ends = [sum(h * w for h, w in sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = mx.split(values, ends, axis=1)
    return [mx.unflatten(part, 1, size) for part, size in zip(parts, sizes, strict=True)]

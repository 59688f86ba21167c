"""Deformable attention over feature maps of several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

# Samples are gathered for at most this many numbers at a time, so that memory does not grow with
# the image: 16 MiB in float32.
CHUNK = 2**22
Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    r"""Each token looks at a few points that it chooses, on several maps, between their pixels.

    $$y_i = W \sum_{l,p} a_{ilp} \, v_l(c_i S_l + o_{ilp} - \tfrac12)$$

    per head: $c_i$ is the center of the token's own cell as fractions of its map, the offsets
    $o$ are in pixels of map $l$ of size $S_l$, the weights $a$ are a
    softmax over all points of all maps, and $v_l$ is interpolated between the four nearest
    pixels, with zeros outside of the map. Source: Zhu et al., Deformable DETR,
    https://arxiv.org/abs/2010.04159.

    Args:
        dim: Channels.
        num_heads: Heads; they divide `dim`.
        num_levels: Maps.
        num_points: Points per map and head.

    Shape:
        - Input and output: `[batch, tokens, dim]`, the tokens of all maps one after the other,
          each map row by row.

    Raises:
        ValueError: Heads do not divide the channels, or the tokens are not those of the maps.

    Examples:
        >>> layer = DeformableAttention(16, num_heads=2, num_levels=2)
        >>> x = mx.zeros((1, 3 * 4 + 6 * 8, 16))
        >>> layer(x, mx.zeros_like(x), [(3, 4), (6, 8)]).shape
        (1, 60, 16)
    """

    def __init__(
        self, dim: int, num_heads: int = 8, num_levels: int = 3, num_points: int = 4
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"[DeformableAttention] 'num_heads' must divide 'dim', {dim}, but got {num_heads}."
            )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Start as upstream does: heads look in directions around the token, one pixel a point."""
        angles = mx.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ways = mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1)  # [M, 2]
        ways = ways / mx.abs(ways).max(axis=-1, keepdims=True)
        steps = mx.arange(1, self.num_points + 1)[:, None] * ways[:, None, None]  # [M, 1, P, 2]
        steps = mx.repeat(steps, self.num_levels, axis=1)
        for layer in (self.sampling_offsets, self.attention_weights):
            layer.weight = mx.zeros_like(layer.weight)
            layer.bias = mx.zeros_like(layer.bias)
        self.sampling_offsets.bias = steps.flatten()

    def __call__(self, x: mx.array, positions: mx.array, sizes: Sizes) -> mx.array:
        """Attend.

        Args:
            x: The tokens.
            positions: What is added to them to choose points and weights, not to the values.
            sizes: Height and width of each map.
        """
        batch, tokens, dim = x.shape
        if len(sizes) != self.num_levels or tokens != sum(h * w for h, w in sizes):
            raise ValueError(
                f"[DeformableAttention] the tokens must be those of {self.num_levels} maps but got "
                f"{tokens} tokens and maps of {list(sizes)}."
            )
        asked, heads = x + positions, self.num_heads
        shape = (batch, tokens, heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(asked).reshape(*shape, 2)
        weights = self.attention_weights(asked).reshape(*shape[:3], -1)
        weights = mx.softmax(weights, axis=-1, precise=True).reshape(shape)
        values = mx.unflatten(self.value_proj(x), -1, (heads, dim // heads))  # [B, N, M, D]
        points = [
            centers(sizes)[:, None, None] * mx.array([w, h]) + offsets[:, :, :, level] - 0.5
            for level, (h, w) in enumerate(sizes)
        ]  # [B, N, M, P, 2] each, x before y
        found = [
            sample(value, point, weights[:, :, :, level])
            for level, (value, point) in enumerate(zip(_split(values, sizes), points, strict=True))
        ]
        return self.output_proj(sum(found[1:], found[0]).flatten(-2))

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call beside its projections: the four pixels around each point."""
        return 4 * output.size * self.num_levels * self.num_points

    def _extra_repr(self) -> str:
        numbers = self.num_heads, self.num_levels, self.num_points
        return "num_heads={}, num_levels={}, num_points={}".format(*numbers)


def centers(sizes: Sizes) -> mx.array:
    """The centers of all cells of all maps as fractions of width and height, `[tokens, 2]`.

    Examples:
        >>> centers([(1, 2), (1, 1)]).tolist()
        [[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]]
    """
    parts = []
    for height, width in sizes:
        rows, columns = (mx.arange(n) + 0.5 for n in (height, width))
        grid = [*mx.meshgrid(columns / width, rows / height, indexing="xy")]
        parts.append(mx.stack(grid, axis=-1).reshape(-1, 2))
    return mx.concatenate(parts)


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

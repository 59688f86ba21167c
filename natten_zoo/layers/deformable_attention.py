"""Deformable attention over feature maps of several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..ops.deformable import sample_maps

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
        found = sample_maps(values, mx.stack(points, axis=3), weights, sizes)
        return self.output_proj(found.flatten(-2))

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

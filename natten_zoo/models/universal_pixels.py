"""The pixel decoder of Mask2Former and OneFormer: maps of a body become tokens and mask features.

Deformable DETR (https://arxiv.org/abs/2010.04159) as Mask2Former uses it,
https://arxiv.org/abs/2112.01527.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers import DeformableAttention, ReLUMLP
from ..layers.norm import LayerNorm
from ..layers.resize import resize_bilinear
from ..layers.sine_positions import sine_positions
from ..layers.transformer_layer import EPS

# Groups of every group norm.
GROUPS = 32
# Maps that exchange what they see: strides 32, 16 and 8, in this order everywhere.
LEVELS = 3


class Pixels(NamedTuple):
    """What the pixel decoder makes of an image.

    Attributes:
        mask_features: `[batch, H/4, W/4, mask_channels]`; a mask is a query's product with it.
        scales: `[batch, H/s, W/s, channels]` for the strides s = 32, 16 and 8.
    """

    mask_features: mx.array
    scales: list[mx.array]


class ConvNorm(nn.Module):
    """Convolution and group norm, at the same size: `[B, H, W, C] -> [B, H, W, D]`."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=bias)
        self.norm = nn.GroupNorm(GROUPS, channels, eps=EPS, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.conv(x))


class PixelLayer(nn.Module):
    """Deformable attention, then a feed-forward part; each normed after it is added.

    Shape:
        - Input and output: `[batch, tokens, channels]`.
    """

    def __init__(self, channels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = DeformableAttention(channels, num_heads, LEVELS)
        self.norm1 = LayerNorm(channels, eps=EPS)
        self.mlp = ReLUMLP((channels, hidden, channels))
        self.norm2 = LayerNorm(channels, eps=EPS)

    def __call__(
        self, x: mx.array, positions: mx.array, sizes: Sequence[tuple[int, int]]
    ) -> mx.array:
        x = self.norm1(x + self.attn(x, positions, sizes))
        return self.norm2(x + self.mlp(x))


class PixelDecoder(nn.Module):
    """Lets three coarse maps look at each other, then refines the finest map with the result.

    Args:
        dims: Channels of the body's four maps, finest first.
        channels: Channels of the tokens.
        mask_channels: Channels of the mask features.
        num_heads: Heads of the deformable attention.
        depth: Layers.
        hidden: Width of their feed-forward parts.
    """

    def __init__(
        self,
        dims: Sequence[int],
        channels: int,
        mask_channels: int,
        num_heads: int,
        depth: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.channels = channels
        coarse = list(reversed(dims))[:LEVELS]
        self.projections = [ConvNorm(dim, channels, 1, bias=True) for dim in coarse]
        self.level_embed = mx.random.normal((LEVELS, channels))
        self.layers = [PixelLayer(channels, num_heads, hidden) for _ in range(depth)]
        self.lateral = ConvNorm(dims[0], channels, 1, bias=False)
        self.output = ConvNorm(channels, channels, 3, bias=False)
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)

    def __call__(self, maps: Sequence[mx.array]) -> Pixels:
        """`maps` are those of the body, finest first, `[batch, height, width, dim]` each."""
        coarse = list(reversed(maps))[:LEVELS]
        scales = [project(x) for project, x in zip(self.projections, coarse, strict=True)]
        sizes = [(x.shape[1], x.shape[2]) for x in scales]
        tokens = self.encode(mx.concatenate([x.flatten(1, 2) for x in scales], axis=1), sizes)
        ends = [0]
        for height, width in sizes:
            ends.append(ends[-1] + height * width)
        scales = [
            mx.unflatten(tokens[:, start:end], 1, size)
            for (start, end), size in zip(pairwise(ends), sizes, strict=True)
        ]
        fine = self.lateral(maps[0])
        fine = fine + resize_bilinear(scales[-1], fine.shape[1:3])
        return Pixels(self.mask_features(nn.relu(self.output(fine))), scales)

    def encode(self, x: mx.array, sizes: Sequence[tuple[int, int]]) -> mx.array:
        """The layers: `[batch, tokens, channels]` of maps of `sizes` to the same shape."""
        places = [
            sine_positions(*size, self.channels).flatten(0, 1) + level
            for size, level in zip(sizes, self.level_embed.astype(mx.float32), strict=True)
        ]
        positions = mx.concatenate(places).astype(x.dtype)
        for layer in self.layers:
            x = layer(x, positions, sizes)
        return x

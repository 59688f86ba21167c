"""SwinIR for restoration: the network that PMRF guesses a face's mean by.

Liang et al., https://arxiv.org/abs/2108.10257, in DifFace's form: pixels are unshuffled by 8 in
front, and brought back by three nearest-neighbor doublings. Layers are named as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers import MLP
from ..layers.norm import LayerNorm
from ..layers.windows import window_attention
from .base import Rules, rename, to_mlx_layout

# What is subtracted from images, and is in no file.
MEAN = (0.4488, 0.4371, 0.4040)
# Pixels per token and axis, and channels of the way back.
UNSHUFFLE, FEATURES = 8, 64
# The norms' own.
EPS = 1e-5
# What upstream keeps in its files and follows from the sizes.
_TABLES = (".relative_position_index", ".attn_mask")
# Upstream's lists, in which all but one is no layer with weights.
_NAMES: Rules = (
    (r"conv_first\.1\.", "conv_first."),
    (r"conv_before_upsample\.0\.", "conv_before_upsample."),
)


class WindowAttention(nn.Module):
    """Attention in windows with a learned bias per head and offset, query minus key."""

    def __init__(self, dims: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        table = ((2 * window_size - 1) ** 2, num_heads)
        self.relative_position_bias_table = mx.random.normal(table, scale=0.02)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        size = self.window_size
        qkv = mx.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))
        bias = self.relative_position_bias_table[_offsets(size)]  # [n, n, heads]
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        bias = mx.moveaxis(bias, -1, 0)
        out = window_attention(query, key, value, size, self.shift, bias=bias)
        return self.proj(out.flatten(-2))

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call with this output, the projections' left out."""
        return 2 * output.size * self.window_size**2


@lru_cache(maxsize=8)
def _offsets(size: int) -> mx.array:
    """The row of the bias table for each query and key of a window."""
    rows, columns = np.divmod(np.arange(size * size), size)
    across = 2 * size - 1
    index = (rows[:, None] - rows + size - 1) * across + columns[:, None] - columns + size - 1
    return mx.array(index)


class SwinBlock(nn.Module):
    """Attention, then the feed-forward part, each after a norm and around a shortcut."""

    def __init__(
        self, dims: int, num_heads: int, window_size: int, shift: int, hidden: int
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dims, eps=EPS)
        self.attn = WindowAttention(dims, num_heads, window_size, shift)
        self.norm2 = LayerNorm(dims, eps=EPS)
        self.mlp = MLP(dims, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    """Blocks, a convolution, and a shortcut around both."""

    def __init__(self, blocks: Sequence[SwinBlock], dims: int) -> None:
        super().__init__()
        self.residual_group = {"blocks": [*blocks]}
        self.conv = _conv(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        for block in self.residual_group["blocks"]:
            y = block(y)
        return x + self.conv(y)


class SwinIR(nn.Module):
    """Restores an image: `[batch, height, width, 3]` of 0..1 to the same, not clipped.

    Args:
        dims: Channels of a token.
        depths: Blocks of each group.
        num_heads: Attention heads.
        window_size: Side of a window in tokens.
        mlp_ratio: Width of the feed-forward parts relative to the channels.

    Shape:
        - Sides must be multiples of eight times the window.
    """

    def __init__(
        self, dims: int, depths: Sequence[int], num_heads: int, window_size: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        hidden = int(dims * mlp_ratio)
        self.conv_first = _conv(3 * UNSHUFFLE**2, dims)
        self.patch_embed = {"norm": LayerNorm(dims, eps=EPS)}
        self.layers = [
            ResidualGroup(
                [
                    SwinBlock(dims, num_heads, window_size, index % 2 * (window_size // 2), hidden)
                    for index in range(depth)
                ],
                dims,
            )
            for depth in depths
        ]
        self.norm = LayerNorm(dims, eps=EPS)
        self.conv_after_body = _conv(dims, dims)
        self.conv_before_upsample = _conv(dims, FEATURES)
        for name in ("conv_up1", "conv_up2", "conv_up3", "conv_hr"):
            setattr(self, name, _conv(FEATURES, FEATURES))
        self.conv_last = _conv(FEATURES, 3)

    def __call__(self, image: mx.array) -> mx.array:
        mean = mx.array(MEAN, dtype=image.dtype)
        first = self.conv_first(pixel_unshuffle(image - mean, UNSHUFFLE))
        x = self.conv_after_body(self.body(first)) + first
        x = nn.leaky_relu(self.conv_before_upsample(x), 0.01)
        for conv in (self.conv_up1, self.conv_up2, self.conv_up3):
            x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
            x = nn.leaky_relu(conv(x), 0.2)
        return self.conv_last(nn.leaky_relu(self.conv_hr(x), 0.2)) + mean

    def body(self, x: mx.array) -> mx.array:
        """All groups of blocks, between two norms."""
        x = self.patch_embed["norm"](x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's state dict into our names and layouts, without its tables."""
        return {
            rename(name, _NAMES): to_mlx_layout(value)
            for name, value in weights.items()
            if not name.endswith(_TABLES)
        }


def pixel_unshuffle(x: mx.array, size: int) -> mx.array:
    """Each square of pixels as one of many channels: of a channel its rows, one after the other.

    Examples:
        >>> pixel_unshuffle(mx.arange(4).reshape(1, 2, 2, 1), 2).tolist()
        [[[[0, 1, 2, 3]]]]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).flatten(3)


def _conv(in_dims: int, out_dims: int) -> nn.Conv2d:
    return nn.Conv2d(in_dims, out_dims, 3, padding=1)

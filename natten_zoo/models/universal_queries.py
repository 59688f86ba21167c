"""The transformer decoder of Mask2Former and OneFormer: queries become classes and masks.

https://arxiv.org/abs/2112.01527: each layer lets a query see only the pixels that the mask it has
so far covers.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers import ReLUMLP
from ..layers.norm import LayerNorm
from ..layers.resize import resize_bilinear
from ..layers.sine_positions import sine_positions
from ..layers.transformer_layer import EPS
from .universal_pixels import LEVELS, Pixels


class Masks(NamedTuple):
    """What the queries found: a class and a mask each.

    Attributes:
        classes: Logits `[batch, queries, num_classes + 1]`; the last is "nothing".
        masks: Logits `[batch, H/4, W/4, queries]`.
    """

    classes: mx.array
    masks: mx.array


class MaskHead(nn.Module):
    """Classes and masks of queries: `[batch, queries, channels]` to [`Masks`][]."""

    def __init__(self, channels: int, mask_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels, eps=EPS)
        self.class_embed = query_classifier(channels, num_classes)
        self.mask_embed = ReLUMLP((channels, channels, channels, mask_channels))

    def __call__(self, queries: mx.array, mask_features: mx.array) -> Masks:
        normed = self.norm(queries)
        weights = self.mask_embed(normed).swapaxes(1, 2)  # [B, mask_channels, Q]
        return Masks(self.class_embed(normed), mask_features @ weights[:, None])

    def macs(self, output: Masks, queries: mx.array, mask_features: mx.array) -> int:
        """Multiply-adds of a call beside the layers in it: of queries with pixels."""
        return output.masks.size * mask_features.shape[-1]


def query_classifier(channels: int, num_classes: int) -> nn.Module:
    """A linear classifier of queries, with "nothing" as its last class; the identity for none."""
    return nn.Linear(channels, num_classes + 1) if num_classes else nn.Identity()


class QueryLayer(nn.Module):
    """Cross-attention, self-attention, feed-forward; each normed after it is added.

    Shape:
        - Input and output: `[batch, queries, channels]`.
    """

    def __init__(self, channels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = nn.MultiHeadAttention(channels, num_heads, bias=True)
        self.norm1 = LayerNorm(channels, eps=EPS)
        self.self_attn = nn.MultiHeadAttention(channels, num_heads, bias=True)
        self.norm2 = LayerNorm(channels, eps=EPS)
        self.mlp = ReLUMLP((channels, hidden, channels))
        self.norm3 = LayerNorm(channels, eps=EPS)

    def __call__(
        self, x: mx.array, places: mx.array, keys: mx.array, values: mx.array, seen: mx.array
    ) -> mx.array:
        """One layer.

        Args:
            x: The queries.
            places: Their learned positions, `[queries, channels]`.
            keys: `[batch, tokens, channels]`, positions added.
            values: `[batch, tokens, channels]`.
            seen: Which tokens each query sees, `[batch, 1, queries, tokens]`.
        """
        x = self.norm1(x + self.cross_attn(x + places, keys, values, seen))
        asked = x + places
        x = self.norm2(x + self.self_attn(asked, asked, x))
        return self.norm3(x + self.mlp(x))


class QueryDecoder(nn.Module):
    """Queries that look at three scales in turn, each where its mask is.

    Args:
        channels: Channels of queries and tokens.
        mask_channels: Channels of the mask features.
        num_heads: Heads of all attentions.
        depth: Layers.
        hidden: Width of their feed-forward parts.
        num_queries: Queries.
        num_classes: Classes, "nothing" not counted.
    """

    def __init__(
        self,
        channels: int,
        mask_channels: int,
        num_heads: int,
        depth: int,
        hidden: int,
        num_queries: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.level_embed = mx.random.normal((LEVELS, channels))
        self.query_embed = mx.random.normal((num_queries, channels))
        self.layers = [QueryLayer(channels, num_heads, hidden) for _ in range(depth)]
        self.head = MaskHead(channels, mask_channels, num_classes)

    def __call__(self, queries: mx.array, pixels: Pixels) -> list[Masks]:
        """What the queries `[batch, queries, channels]` find before and after each layer."""
        values, keys = [], []
        for x, own in zip(pixels.scales, self.level_embed, strict=True):
            tokens = (x + own).flatten(1, 2)
            places = sine_positions(*x.shape[1:]).flatten(0, 1).astype(x.dtype)
            values.append(tokens)
            keys.append(tokens + places)
        found = [self.head(queries, pixels.mask_features)]
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            seen = visible(found[-1].masks, pixels.scales[level])
            queries = layer(queries, self.query_embed, keys[level], values[level], seen)
            found.append(self.head(queries, pixels.mask_features))
        return found


def visible(masks: mx.array, scale: mx.array) -> mx.array:
    """Which tokens of a map each query sees: those in its mask, or all if there are none.

    Args:
        masks: Logits `[batch, height, width, queries]`.
        scale: The map, `[batch, height, width, channels]`.

    Returns:
        `[batch, 1, queries, tokens]` of booleans.

    Examples:
        >>> masks = mx.array([[1.0, -1.0], [-1.0, -1.0]]).reshape(1, 1, 2, 2)
        >>> visible(masks, mx.zeros((1, 1, 2, 8)))[0, 0].tolist()
        [[True, False], [True, True]]
    """
    inside = mx.stop_gradient(resize_bilinear(masks, scale.shape[1:3])) >= 0
    inside = inside.flatten(1, 2).swapaxes(1, 2)  # [B, Q, tokens]
    return (inside | ~inside.any(axis=-1, keepdims=True))[:, None]

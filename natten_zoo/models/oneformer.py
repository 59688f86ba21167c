"""OneFormer: one model for panoptic, instance and semantic segmentation.

https://arxiv.org/abs/2211.06220: a Mask2Former whose queries start from a token that says which
task it is. That token is made of the words "the task is panoptic"; the encoder of other texts is
only for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers import ReLUMLP
from ..layers.norm import LayerNorm
from ..layers.sine_positions import sine_positions
from ..layers.transformer_layer import EPS
from .universal import Universal, UniversalConfig, check_task, from_huggingface
from .universal_pixels import Pixels
from .universal_queries import Masks

# CLIP's numbers of "<start> the task is panoptic <end>" and so on, followed by zeros.
TASK_LENGTH = 77
TASK_IDS = {
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
}
# Arguments of the configuration, and what they are called in a `config.json`.
_HUGGINGFACE = {
    "channels": "conv_dim",
    "mask_channels": "mask_dim",
    "num_heads": "num_attention_heads",
    "pixel_depth": "encoder_layers",
    "pixel_hidden": "encoder_feedforward_dim",
    "hidden": "dim_feedforward",
    "num_queries": "num_queries",
    "query_depth": "query_dec_layers",
}


@dataclass(frozen=True)
class OneFormerConfig(UniversalConfig):
    """Configuration of a OneFormer.

    Args:
        query_depth: Layers of the query transformer; [`UniversalConfig`][] has the others.
    """

    num_queries: int = 150
    query_depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_channels != self.channels or self.num_queries < 2:
            raise ValueError(
                "[OneFormerConfig] 'mask_channels' must be 'channels', since the queries start from"
                f" the mask features, and 'num_queries' 2 or more, but got {self.mask_channels} of "
                f"{self.channels} and {self.num_queries}."
            )

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> OneFormerConfig:
        """Translate the `config.json` of a transformers OneFormer.

        Raises:
            KeyError: `config` lacks what has no default.
            ValueError: It describes what cannot be computed as it was trained.
        """
        depth = config.get("decoder_layers", 10) - 1  # what is predicted before the first counts
        return cls(depth=depth, **from_huggingface(config, _HUGGINGFACE))


class StartLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normed after it is added."""

    def __init__(self, channels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiHeadAttention(channels, num_heads, bias=True)
        self.norm1 = LayerNorm(channels, eps=EPS)
        self.cross_attn = nn.MultiHeadAttention(channels, num_heads, bias=True)
        self.norm2 = LayerNorm(channels, eps=EPS)
        self.mlp = ReLUMLP((channels, hidden, channels))
        self.norm3 = LayerNorm(channels, eps=EPS)

    def __call__(self, x: mx.array, places: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        asked = x + places
        x = self.norm1(x + self.self_attn(asked, asked, x))
        x = self.norm2(x + self.cross_attn(x + places, keys, values))
        return self.norm3(x + self.mlp(x))


class QueryTransformer(nn.Module):
    """Makes a different query of each copy of the task's token, by looking at the image.

    Args:
        channels: Channels of queries and tokens.
        num_heads: Heads of the attentions.
        depth: Layers.
        hidden: Width of their feed-forward parts.
    """

    def __init__(self, channels: int, num_heads: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv2d(channels, channels, 1)
        self.layers = [StartLayer(channels, num_heads, hidden) for _ in range(depth)]
        self.norm = LayerNorm(channels, eps=EPS)

    def __call__(self, token: mx.array, places: mx.array, mask_features: mx.array) -> mx.array:
        """Start the queries.

        Args:
            token: Of the task, `[batch, 1, channels]`.
            places: Learned positions of the queries, `[queries, channels]`.
            mask_features: `[batch, height, width, channels]`.

        Returns:
            `[batch, queries, channels]`.
        """
        batch, *shape = mask_features.shape
        values = sine_positions(*shape).astype(token.dtype)  # positions alone, as published
        keys = (values + self.input_proj(mask_features)).flatten(1, 2)
        values = mx.broadcast_to(values.flatten(0, 1), keys.shape)
        x = mx.broadcast_to(token, (batch, *places.shape))
        for layer in self.layers:
            x = layer(x, places, keys, values)
        return self.norm(x)


class OneFormer(Universal):
    """Universal segmentation, told by a word what to look for, with a NAT or DiNAT body.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]` of any size, and the name of a task.
        - Output: [`Masks`][natten_zoo.models.universal_queries.Masks] with class logits
          `[batch, queries, num_classes + 1]` and mask logits
          `[batch, ceil(height / 4), ceil(width / 4), queries]`.

    Examples:
        >>> from natten_zoo.models import NATConfig
        >>> body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
        >>> config = OneFormerConfig(body, 32, 32, num_queries=5, num_classes=7, depth=1)
        >>> found = OneFormer(config).eval()(mx.zeros((1, 64, 80, 3)), task="instance")
        >>> found.classes.shape, found.masks.shape
        ((1, 5, 8), (1, 16, 20, 5))
    """

    Config = OneFormerConfig
    KEEP = 0.5

    def __init__(self, config: OneFormerConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.task_mlp = ReLUMLP((TASK_LENGTH, channels, channels))
        self.query_transformer = QueryTransformer(
            channels, config.num_heads, config.query_depth, config.hidden
        )

    def task_token(self, ids: mx.array) -> mx.array:
        """The token of a task, `[1, 1, channels]`, whose words [`task_ids`][] numbered."""
        # In float32, since half precision would round the numbers.
        token = self.task_mlp(ids.astype(mx.float32)[None, None])
        return self.decoder.head.norm(token.astype(self.decoder.query_embed.dtype))

    def all_masks(self, x: mx.array, task: str = "panoptic") -> list[Masks]:
        """What the queries found before the first layer and after each one."""
        ids = task_ids(task)
        pixels = self.pixel_decoder(self.features(x))
        return self.decoder(self.start(ids, pixels), pixels)

    def start(self, ids: mx.array, pixels: Pixels) -> mx.array:
        """The queries, the last of them the task itself: `[batch, num_queries, channels]`."""
        token, features = self.task_token(ids), pixels.mask_features
        queries = self.query_transformer(token, self.decoder.query_embed[:-1], features)
        token = mx.broadcast_to(token, (len(features), *token.shape[1:]))
        return mx.concatenate([queries, token], axis=1)


def task_ids(task: str) -> mx.array:
    """The words of a task as CLIP numbers them, `[77]`.

    Raises:
        ValueError: There is no such task.

    Examples:
        >>> task_ids("instance")[:7].tolist()
        [49406, 518, 10549, 533, 34572, 49407, 0]
    """
    check_task("OneFormer", task)
    ids = TASK_IDS[task]
    return mx.array([*ids, *[0] * (TASK_LENGTH - len(ids))])

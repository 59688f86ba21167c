"""NAT over sequences: sound, sensors, anything sampled along one axis.

An overlapping tokenizer, then layers of dilated neighborhood attention at one resolution, as DiNAT
alternates them in images: windows without dilation for detail, dilated ones for reach.
https://arxiv.org/abs/2209.15001
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..layers import (
    NeighborhoodAttention1D,
    TransformerLayer,
    drop_path_schedule,
    init_weights,
)
from ..layers.convolution import Conv1d
from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS
from .base import Config
from .staged import FeatureInfo, Staged


@dataclass(frozen=True)
class NAT1DConfig(Config):
    """Configuration of a NAT over sequences.

    Args:
        embed_dim: Channels.
        num_heads: Attention heads.
        dilations: Dilation of each layer.
        kernel_size: Window size.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        tokenizer_stride: Samples from one token to the next; a token sees twice that and one more.
        in_chans: Channels of the sequence.
        num_classes: Outputs of the classifier; 0 for none.
        qkv_bias: Whether the attention's input projection has a bias.
        drop_rate: Dropout rate of projections and feed-forward parts.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0.
    """

    embed_dim: int
    num_heads: int
    dilations: tuple[int, ...]
    kernel_size: int = 7
    mlp_ratio: float = 2.0
    tokenizer_stride: int = 1
    in_chans: int = 1
    num_classes: int = 10
    qkv_bias: bool = True
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0


class NAT1D(Staged):
    """A classifier of sequences.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, length, in_chans]`, of any length.
        - Output: `[batch, num_classes]` logits.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import create_model
        >>> create_model("nat1d_mnist1d")(mx.zeros((2, 40, 1))).shape
        (2, 10)
    """

    TASK = "sequence-classification"
    AXES = ("length",)
    Config = NAT1DConfig

    def __init__(self, config: NAT1DConfig) -> None:
        super().__init__(config)
        dim, stride = config.embed_dim, config.tokenizer_stride
        self.patch_embed = Conv1d(config.in_chans, dim, 2 * stride + 1, stride, padding=stride)
        (rates,) = drop_path_schedule(config.drop_path_rate, (len(config.dilations),))
        self.layers = [
            TransformerLayer(
                NeighborhoodAttention1D(
                    dim,
                    config.num_heads,
                    config.kernel_size,
                    dilation=dilation,
                    qkv_bias=config.qkv_bias,
                    attn_drop=config.attn_drop_rate,
                    proj_drop=config.drop_rate,
                    rel_pos_bias=True,
                    pad_small_inputs=True,
                ),
                dim,
                config.mlp_ratio,
                config.drop_rate,
                rate,
            )
            for dilation, rate in zip(config.dilations, rates, strict=True)
        ]
        self.norm = LayerNorm(dim, eps=EPS)
        self.add_classifier()
        init_weights(self)

    @property
    def num_features(self) -> int:
        """Channels, the same everywhere."""
        return self.config.embed_dim

    def features(self, x: mx.array) -> list[mx.array]:
        """The tokens after each layer, `[batch, ceil(length / tokenizer_stride), channels]`."""
        self.check_input(x)
        x = self.patch_embed(x)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Channels, stride and name of each layer's tokens."""
        config = self.config
        return [
            FeatureInfo(config.embed_dim, config.tokenizer_stride, f"layers.{index}")
            for index in range(len(self.layers))
        ]

    def stage_parts(self) -> list[list[nn.Module]]:
        """Each layer."""
        return [[layer] for layer in self.layers]

    def stages(self) -> list[str]:
        """The tokenizer, then each layer."""
        return ["patch_embed", *(f"layers.{index}" for index in range(len(self.layers)))]

"""Isotropic models: one resolution throughout, as in ViT.

NAT and DiNAT with 16x16 patches, and ViT-RPB, their counterpart with full attention and the same
relative positional bias. Full attention is neighborhood attention whose window is the whole map,
so the three are one model. https://arxiv.org/abs/2209.15001, appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..layers import (
    NeighborhoodAttention2D,
    PatchEmbed,
    TransformerLayer,
    drop_path_schedule,
    init_weights,
)
from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS
from .base import Config
from .staged import FeatureInfo, Staged


@dataclass(frozen=True)
class IsotropicConfig(Config):
    """Configuration of an isotropic model.

    Args:
        embed_dim: Channels.
        num_heads: Attention heads.
        depth: Number of layers.
        kernel_size: Window size; None is the whole map of `img_size`: full attention.
        dilation: Dilation of every second layer; the others have 1.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        img_size: Side of the image in pixels. It binds full attention only.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        qkv_bias: Whether the attention's input projection has a bias.
        qk_scale: Factor of the logits. Default: `head_dim ** -0.5`.
        drop_rate: Dropout rate of tokens, projections and feed-forward parts.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0.
    """

    embed_dim: int
    num_heads: int
    depth: int = 12
    kernel_size: int | None = 7
    dilation: int = 1
    mlp_ratio: float = 4.0
    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size is None and self.dilation != 1:
            raise ValueError(
                f"[IsotropicConfig] 'dilation' must be 1 with full attention but got "
                f"{self.dilation}."
            )

    @property
    def map_size(self) -> int:
        """Tokens on a side of the map of an `img_size` image."""
        return -(-self.img_size // self.patch_size)


class IsotropicNAT(Staged):
    """NAT, DiNAT or ViT-RPB without a hierarchy.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]`: of any size with neighborhood attention, of
          `img_size` with full attention.
        - Output: `[batch, num_classes]` logits.
    """

    Config = IsotropicConfig

    def __init__(self, config: IsotropicConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.pos_drop = nn.Dropout(config.drop_rate)
        (rates,) = drop_path_schedule(config.drop_path_rate, (config.depth,))
        self.layers = [
            TransformerLayer(
                NeighborhoodAttention2D(
                    dim,
                    config.num_heads,
                    config.kernel_size or config.map_size,
                    dilation=config.dilation if i % 2 else 1,
                    qkv_bias=config.qkv_bias,
                    qk_scale=config.qk_scale,
                    attn_drop=config.attn_drop_rate,
                    proj_drop=config.drop_rate,
                    rel_pos_bias=True,
                    pad_small_inputs=config.kernel_size is not None,
                ),
                dim,
                config.mlp_ratio,
                config.drop_rate,
                rate,
            )
            for i, rate in enumerate(rates)
        ]
        self.norm = LayerNorm(dim, eps=EPS)
        self.add_classifier()
        init_weights(self)

    @property
    def num_features(self) -> int:
        """Channels, the same everywhere."""
        return self.config.embed_dim

    def features(self, x: mx.array) -> list[mx.array]:
        """The maps after each quarter of the layers, all of stride `patch_size`, not normed."""
        ends = set(self._ends())
        self.check_input(x)
        x = self.pos_drop(self.patch_embed(x))
        self._check_size(x)
        maps = []
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if i in ends:
                maps.append(x)
        return maps

    def _ends(self) -> list[int]:
        """How many layers there are up to the end of each quarter; of fewer than four, each."""
        depth = len(self.layers)
        return sorted({depth * quarter // 4 for quarter in (1, 2, 3, 4)} - {0})

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Channels, stride and name of each map: the last layer of a quarter."""
        config = self.config
        return [
            FeatureInfo(config.embed_dim, config.patch_size, f"layers.{end - 1}")
            for end in self._ends()
        ]

    def stage_parts(self) -> list[list[nn.Module]]:
        """Each quarter of the layers."""
        ends = self._ends()
        return [[*self.layers[start:end]] for start, end in zip([0, *ends], ends, strict=False)]

    def stages(self) -> list[str]:
        """The tokenizer, then each layer."""
        return ["patch_embed", *(f"layers.{index}" for index in range(len(self.layers)))]

    def _check_size(self, x: mx.array) -> None:
        side = self.config.map_size
        if self.config.kernel_size is None and x.shape[1:3] != (side, side):
            raise ValueError(
                f"[IsotropicNAT] images must be {self.config.img_size}x{self.config.img_size} with "
                f"full attention but their map is {x.shape[1]}x{x.shape[2]} tokens instead of "
                f"{side}x{side}; build the model with another 'img_size', which resizes the bias "
                f"tables of pretrained weights."
            )

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's state dict into our layouts; ViT-RPB's index buffer is left out."""
        weights = {
            name: value
            for name, value in weights.items()
            if not name.endswith("relative_position_index")
        }
        return Staged.sanitize(weights)

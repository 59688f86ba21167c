"""DiNAT_s: dilated neighborhood attention in Swin's macro-architecture.

https://arxiv.org/abs/2209.15001. Patches do not overlap, and levels are joined by merging 2x2
tokens, normed before the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..layers import PatchEmbed
from ..layers.norm import LayerNorm
from ..layers.padding import pad_to_multiple
from ..layers.transformer_layer import EPS
from .base import Config, check_levels
from .nat import Hierarchical


@dataclass(frozen=True)
class DiNATsConfig(Config):
    """Configuration of a DiNAT_s; defaults are upstream's.

    Args:
        embed_dim: Channels of the first level; each level doubles them.
        depths: Layers per level.
        num_heads: Attention heads per level.
        kernel_size: Window size.
        dilations: Dilation of each layer of each level, or a name of `configs/dilations.yaml`, such
            as `"dinat_s-segmentation-512"`. Default: 1 throughout.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        qkv_bias: Whether the attention's input projection has a bias.
        qk_scale: Factor of the logits. Default: `head_dim ** -0.5`.
        drop_rate: Dropout rate of tokens, projections and feed-forward parts.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | str | None = None
    mlp_ratio: float = 4.0
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)


class PatchMerging(nn.Module):
    """Joins 2x2 tokens: `[B, H, W, D] -> [B, H/2, W/2, 2 D]`; odd sizes are zero-padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim, eps=EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = pad_to_multiple(x, 2)
        # Column by column, as Swin concatenates them: the weights depend on this order.
        corners = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(mx.concatenate(corners, axis=-1)))


class DiNAT_s(Hierarchical):  # noqa: N801  upstream's name
    """Dilated Neighborhood Attention Transformer with Swin's macro-architecture.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]` of any size.
        - Output: `[batch, num_classes]` logits.
    """

    Config = DiNATsConfig
    LEVELS = "layers"

    def __init__(self, config: DiNATsConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim)
        self.add_levels(PatchMerging)

    @property
    def patch_stride(self) -> int:
        """Pixels of the image per token of the first level."""
        return int(self.config.patch_size)

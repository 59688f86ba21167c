"""NAT and DiNAT: hierarchical vision transformers of (dilated) neighborhood attention.

An image becomes a map of tokens, which passes *levels*: layers at one resolution, then half of it.

NAT: https://arxiv.org/abs/2204.07143. DiNAT: https://arxiv.org/abs/2209.15001. Dilation changes
what a token sees but no weight: DiNAT is NAT with other `dilations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers import (
    NeighborhoodAttention2D,
    TransformerLayer,
    drop_path_schedule,
    init_weights,
)
from ..layers.convolution import Conv2d
from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS
from ..pretrained.huggingface import nat_arguments
from .base import Config, check_levels, rename, to_mlx_layout
from .staged import FeatureInfo, Staged


@dataclass(frozen=True)
class NATConfig(Config):
    """Configuration of a NAT or DiNAT.

    Args:
        embed_dim: Channels of the first level; each level doubles them.
        depths: Layers per level.
        num_heads: Attention heads per level.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        kernel_size: Window size.
        dilations: Dilation of each layer of each level, or the name of published ones for larger
            images in `configs/dilations.yaml`, such as `"detection-800"`. Default: 1 throughout.
        tokenizer_strides: Strides of the two tokenizer convolutions.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        qkv_bias: Whether the attention's input projection has a bias.
        qk_scale: Factor of the logits. Default: `head_dim ** -0.5`.
        drop_rate: Dropout rate of tokens, projections and feed-forward parts.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0.
        layer_scale: Initial gain of each residual branch. Default: no gains.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float = 3.0
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | str | None = None
    tokenizer_strides: tuple[int, int] = (2, 2)
    in_chans: int = 3
    num_classes: int = 1000
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.2
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> NATConfig:
        """Translate the `config.json` of a transformers NAT or DiNAT.

        Raises:
            ValueError: It asks for what is not computed here; the message names the key.
        """
        return cls.from_dict(nat_arguments(config))


class ConvTokenizer(nn.Module):
    """Two overlapping 3x3 convolutions and a norm.

    Args:
        in_chans: Channels of the image.
        embed_dim: Channels of the tokens.
        strides: Of the two convolutions.

    Shape:
        - Input: `[batch, height, width, in_chans]`.
        - Output: `[batch, ceil(height / 4), ceil(width / 4), embed_dim]` with strides (2, 2).
    """

    def __init__(self, in_chans: int, embed_dim: int, strides: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        first, second = strides
        self.proj = [
            Conv2d(in_chans, embed_dim // 2, 3, stride=first, padding=1),
            Conv2d(embed_dim // 2, embed_dim, 3, stride=second, padding=1),
        ]
        self.norm = LayerNorm(embed_dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        for conv in self.proj:
            x = conv(x)
        return self.norm(x)


class ConvDownsampler(nn.Module):
    """A 3x3 convolution of stride 2 and a norm.

    Args:
        dim: Channels of the input.

    Shape:
        - Input: `[batch, height, width, dim]`.
        - Output: `[batch, ceil(height / 2), ceil(width / 2), 2 * dim]`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = LayerNorm(2 * dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.reduction(x))


class Level(nn.Module):
    """Layers at one resolution, then a downsampler unless it is the last level.

    Args:
        config: The model's configuration, a [`NATConfig`][] or one with its arguments.
        index: Which level.
        drop_paths: Rate of stochastic depth of each layer.
        downsampler: Layer that maps D channels to 2 D at half the size.
        layer_scale: Initial gain of each residual branch.
        attention: Makes an attention layer, with the arguments of `NeighborhoodAttention2D`.
    """

    def __init__(
        self,
        config: Any,
        index: int,
        drop_paths: list[float],
        downsampler: Callable[[int], nn.Module],
        layer_scale: float | None = None,
        attention: Callable[..., nn.Module] = NeighborhoodAttention2D,
    ) -> None:
        super().__init__()
        dim = config.embed_dim * 2**index
        depth = config.depths[index]
        dilations = config.dilations[index] if config.dilations else (1,) * depth
        self.blocks = [
            TransformerLayer(
                attention(
                    dim,
                    config.num_heads[index],
                    config.kernel_size,
                    dilation=dilation,
                    qkv_bias=config.qkv_bias,
                    qk_scale=config.qk_scale,
                    attn_drop=config.attn_drop_rate,
                    proj_drop=config.drop_rate,
                    rel_pos_bias=True,
                    pad_small_inputs=True,
                ),
                dim,
                config.mlp_ratio,
                config.drop_rate,
                drop_path,
                layer_scale,
            )
            for dilation, drop_path in zip(dilations, drop_paths, strict=True)
        ]
        if index + 1 < len(config.depths):
            self.downsample = downsampler(dim)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """The level's map after and before downsampling."""
        for block in self.blocks:
            x = block(x)
        return (self.downsample(x) if "downsample" in self else x), x


class Hierarchical(Staged):
    """Base of the classifiers whose levels halve the map, one after the other.

    Subclasses build their tokenizer `patch_embed`, then [`add_levels`][].

    Attributes:
        LEVELS: The levels' name in the weights.
    """

    LEVELS: ClassVar[str] = "levels"

    def add_levels(
        self,
        downsampler: Callable[[int], nn.Module],
        layer_scale: float | None = None,
        attention: Callable[..., nn.Module] = NeighborhoodAttention2D,
    ) -> None:
        """Build what follows the tokenizer; arguments are those of `Level`."""
        config = self.config
        self.pos_drop = nn.Dropout(config.drop_rate)
        schedule = drop_path_schedule(config.drop_path_rate, config.depths)
        self[self.LEVELS] = [
            Level(config, i, rates, downsampler, layer_scale, attention)
            for i, rates in enumerate(schedule)
        ]
        self.norm = LayerNorm(self.num_features, eps=EPS)
        self.add_classifier()
        init_weights(self)

    @property
    def num_features(self) -> int:
        """Channels of the last level."""
        return self.config.embed_dim * 2 ** (len(self.config.depths) - 1)

    def features(self, x: mx.array) -> list[mx.array]:
        """The map of each level before its downsampler, as detection and segmentation use it.

        Four levels give strides 4, 8, 16 and 32 with D, 2 D, 4 D and 8 D channels, not normed.
        """
        self.check_input(x)
        x = self.pos_drop(self.patch_embed(x))
        maps = []
        for level in self[self.LEVELS]:
            x, full = level(x)
            maps.append(full)
        return maps

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Channels, stride and name of each level's map."""
        config = self.config
        return [
            FeatureInfo(config.embed_dim * 2**i, self.patch_stride * 2**i, f"{self.LEVELS}.{i}")
            for i in range(len(config.depths))
        ]

    @property
    def patch_stride(self) -> int:
        """Pixels of the image per token of the first level, along height and width."""
        return math.prod(self.config.tokenizer_strides)

    def stage_parts(self) -> list[list[nn.Module]]:
        """The stages that `Staged` speaks of are the levels."""
        return [[level] for level in self[self.LEVELS]]

    def stages(self) -> list[str]:
        """The tokenizer, then each layer of each level and its downsampler."""
        return ["patch_embed", *level_stages(self.LEVELS, self.config.depths)]


def level_stages(name: str, depths: Sequence[int]) -> list[str]:
    """The parts of levels from the input up: each level's layers, then what else it has.

    Examples:
        >>> level_stages("levels", (2, 1))
        ['levels.0.blocks.0', 'levels.0.blocks.1', 'levels.0', 'levels.1.blocks.0', 'levels.1']
    """
    stages = []
    for i, depth in enumerate(depths):
        stages += [f"{name}.{i}.blocks.{j}" for j in range(depth)]
        stages.append(f"{name}.{i}")
    return stages


class NAT(Hierarchical):
    """Neighborhood Attention Transformer.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]` of any size; maps smaller than a window are
          zero-padded inside the attention as the published weights expect.
        - Output: `[batch, num_classes]` logits.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import NAT, NATConfig
        >>> model = NAT(NATConfig(16, depths=(1, 1), num_heads=(1, 2), kernel_size=3))
        >>> model(mx.zeros((1, 32, 32, 3))).shape
        (1, 1000)
    """

    Config = NATConfig

    def __init__(self, config: NATConfig) -> None:
        super().__init__(config)
        self.patch_embed = ConvTokenizer(
            config.in_chans, config.embed_dim, config.tokenizer_strides
        )
        self.add_levels(ConvDownsampler, config.layer_scale)

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's or Hugging Face's state dict into our names and layouts."""
        if any(name.endswith("attention.self.query.weight") for name in weights):
            weights = _from_huggingface(weights)
        return {name: to_mlx_layout(value) for name, value in weights.items()}


class DiNAT(NAT):
    """Dilated Neighborhood Attention Transformer: a NAT whose `dilations` are set."""


_HUGGINGFACE_NAMES = (
    (r"^(nat|dinat)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.levels\.(\d+)\.layers\.", r"levels.\1.blocks."),
    (r"^encoder\.levels\.", "levels."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def _from_huggingface(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    renamed = {rename(name, _HUGGINGFACE_NAMES): value for name, value in weights.items()}
    result: dict[str, mx.array] = {}
    for name, value in renamed.items():
        if ".attn.query." in name:
            parts = [renamed[name.replace(".query.", f".{p}.")] for p in ("query", "key", "value")]
            result[name.replace(".query.", ".qkv.")] = mx.concatenate(parts)
        elif name.endswith("layer_scale_parameters"):
            stem = name.removesuffix("layer_scale_parameters")
            result[stem + "gamma1"], result[stem + "gamma2"] = value[0], value[1]
        elif ".attn.key." not in name and ".attn.value." not in name:
            result[name] = value
    return result

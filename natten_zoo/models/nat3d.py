"""NAT3D and DiNAT3D: video classifiers of 3-D neighborhood attention.

NAT's architecture with windows that reach through time as well, as Video Swin
(https://arxiv.org/abs/2106.13230) is Swin's: two frames make a token, and time is not reduced any
further. [`inflate`][] makes one of a 2-D checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..layers import NeighborhoodAttention3D
from ..layers.convolution import Conv3d
from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS
from ..pretrained.quantize import refuse_quantized
from .base import Config, check_levels
from .nat import NAT, Hierarchical


@dataclass(frozen=True)
class NAT3DConfig(Config):
    """Configuration of a NAT3D or DiNAT3D.

    Args:
        embed_dim: Channels of the first level; each level doubles them.
        depths: Layers per level.
        num_heads: Attention heads per level.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        kernel_size: Window size in time, height and width.
        tubelet_size: Frames that a token is made of. With 1, and windows of 1 in time, the model
            is the mean over frames of what a NAT says of each.
        dilations: Dilation in height and width of each layer of each level, or a name of
            `configs/dilations.yaml`; in time it is 1.
            Default: 1 throughout.
        tokenizer_strides: Strides in height and width of the two tokenizer convolutions.
        in_chans: Channels of a frame.
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
    kernel_size: tuple[int, int, int] = (3, 7, 7)
    tubelet_size: int = 2
    dilations: tuple[tuple[int, ...], ...] | str | None = None
    tokenizer_strides: tuple[int, int] = (2, 2)
    in_chans: int = 3
    num_classes: int = 400
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.2
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)
        if not isinstance(self.kernel_size, tuple) or len(self.kernel_size) != 3:
            raise ValueError(
                "[NAT3DConfig] 'kernel_size' must be three numbers, for time, height and width, "
                f"but got {self.kernel_size}."
            )


class ConvTokenizer3D(nn.Module):
    """Two convolutions and a norm: `[B, T, H, W, C] -> [B, T/2, H/4, W/4, D]`."""

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        strides: tuple[int, int] = (2, 2),
        tubelet_size: int = 2,
    ) -> None:
        super().__init__()
        first, second = strides
        self.proj = [
            _conv(in_chans, embed_dim // 2, tubelet_size, tubelet_size, stride=first),
            _conv(embed_dim // 2, embed_dim, stride=second),
        ]
        self.norm = LayerNorm(embed_dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        for conv in self.proj:
            x = conv(x)
        return self.norm(x)


class ConvDownsampler3D(nn.Module):
    """A convolution and a norm: `[B, T, H, W, D] -> [B, T, H/2, W/2, 2 D]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = _conv(dim, 2 * dim, stride=2, bias=False)
        self.norm = LayerNorm(2 * dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.reduction(x))


def _conv(
    channels: int,
    out: int,
    frames: int = 1,
    time_stride: int = 1,
    *,
    stride: int,
    bias: bool = True,
) -> Conv3d:
    """A convolution of 3x3 pixels and some frames that are not padded."""
    kernel, strides = (frames, 3, 3), (time_stride, stride, stride)
    return Conv3d(channels, out, kernel, stride=strides, padding=(0, 1, 1), bias=bias)


def _attention(
    dim: int, num_heads: int, kernel_size: tuple[int, ...], *, dilation: int, **options: Any
) -> NeighborhoodAttention3D:
    """3-D attention that is dilated in height and width only."""
    dilations = 1, dilation, dilation
    return NeighborhoodAttention3D(dim, num_heads, kernel_size, dilation=dilations, **options)


class NAT3D(Hierarchical):
    """Neighborhood Attention Transformer for videos.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, frames, height, width, in_chans]`, `tubelet_size` frames or more (what
          is over at the end is not seen) of any size; maps smaller than a window are zero-padded
          inside the attention as in 2-D.
        - Output: `[batch, num_classes]` logits.

    Raises:
        ValueError: On a call, if the input is no clip of `tubelet_size` frames or more.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import NAT3D, NAT3DConfig
        >>> model = NAT3D(NAT3DConfig(8, depths=(1, 1), num_heads=(1, 2), kernel_size=(3, 3, 3)))
        >>> model(mx.zeros((1, 8, 32, 32, 3))).shape
        (1, 400)
    """

    Config = NAT3DConfig
    TASK = "video-classification"
    AXES = ("frames", "height", "width")

    def __init__(self, config: NAT3DConfig) -> None:
        super().__init__(config)
        self.patch_embed = ConvTokenizer3D(
            config.in_chans, config.embed_dim, config.tokenizer_strides, config.tubelet_size
        )
        self.add_levels(ConvDownsampler3D, config.layer_scale, _attention)

    def check_input(self, x: Any) -> None:
        """Refuse what `features` cannot take; nothing is computed.

        Raises:
            TypeError: `x` is no array of MLX, or not of floating point numbers.
            ValueError: It has other axes or channels, or too few frames.
        """
        super().check_input(x)
        if x.shape[1] < self.config.tubelet_size:
            raise ValueError(
                f"[{type(self).__name__}] 'x' must have {self.config.tubelet_size} frames or more "
                f"but got {list(x.shape)}."
            )

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn torch's layout of convolutions, out, in, time, height, width, into ours."""
        return {
            name: value.transpose(0, 2, 3, 4, 1) if value.ndim == 5 else value
            for name, value in weights.items()
        }


class DiNAT3D(NAT3D):
    """Dilated Neighborhood Attention Transformer for videos: a NAT3D with `dilations`."""


def inflate(model: NAT, kernel_size: int = 3, num_classes: int | None = None) -> NAT3D:
    """Make a video classifier of an image classifier, as Video Swin is made of Swin.

    Convolutions and bias tables are repeated along time, the convolution over two frames divided by
    two; everything else is copied. On a clip whose frames are all the same, the result gives what
    the image classifier gives on one of them, if the clip has `2 * kernel_size` frames or more.

    Args:
        model: A NAT or DiNAT with its weights.
        kernel_size: Window size in time, in tokens of two frames.
        num_classes: Size of a fresh classifier. Default: the image classifier is kept.

    Raises:
        TypeError: `model` is no NAT.
        ValueError: It is quantized.

    Examples:
        >>> from natten_zoo import create_model
        >>> inflate(create_model("nat_mini"), num_classes=400).config.kernel_size
        (3, 7, 7)
    """
    if not isinstance(model, NAT):
        raise TypeError(f"[inflate] 'model' must be a NAT or DiNAT but got {type(model).__name__}.")
    refuse_quantized(model, "[inflate] 'model'")
    values = dataclasses.asdict(model.config)
    values["kernel_size"] = (kernel_size, model.config.kernel_size, model.config.kernel_size)
    inflated = (DiNAT3D if values["dilations"] else NAT3D)(NAT3DConfig.from_dict(values))
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    target = dict(tree_flatten(inflated.parameters()))
    inflated.load_weights(
        [(name, _repeat(value, target[name].shape)) for name, value in weights.items()]
    )
    # A bias table is added and not summed over time, so only convolutions are divided.
    first = inflated.patch_embed.proj[0]
    first.weight = first.weight / inflated.config.tubelet_size
    if model.record is not None:
        origin = model.record.for_classes(inflated.config.num_classes)
        inflated.record = origin.of_other_weights(note=f"inflated from {origin.name}")
    if num_classes is not None:
        inflated.reset_classifier(num_classes)
    inflated.train(model.training)
    return inflated


def _repeat(value: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The weight repeated along time, the axis after the first, where the target has one."""
    return value if value.ndim == len(shape) else mx.broadcast_to(value[:, None], shape)

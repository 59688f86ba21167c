"""NA-UNETR: segmentation of volumes, a Swin UNETR whose windows slide.

Swin UNETR (https://arxiv.org/abs/2201.01266, as MONAI builds it) with 3-D neighborhood attention in
the place of shifted windows: the same stages, the same convolutions down the other side of the U,
parameter for parameter, so that a Swin UNETR's weights can start one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..layers import NeighborhoodAttention3D, drop_path_schedule, init_weights
from ..layers.convolution import Conv3d
from ..layers.norm import layer_norm
from ..layers.padding import crop, pad_to_multiple
from ..layers.transformer_layer import EPS
from ..ops.varlen import Sizes
from ..pretrained.load import create_model
from ..pretrained.readers import read_checkpoint
from ..pretrained.strict import load_strict
from ..pretrained.translate import own_names
from .base import Classifier, Config, check_levels
from .na_unetr_blocks import CORNERS, PatchMerging, ResidualBlock, UpBlock
from .nat import Level, level_stages
from .swin_unetr import from_monai

logger = logging.getLogger("natten_zoo")

# Side of the cube of voxels that a token is made of.
PATCH = 2
# What comes before the decoder.
ENCODER = ("patch_embed.", "levels.")


@dataclass(frozen=True)
class NAUNETRConfig(Config):
    """Configuration of an NA-UNETR.

    Args:
        embed_dim: Channels of the first level; each level doubles them.
        depths: Attention layers per level.
        num_heads: Attention heads per level.
        mlp_ratio: Width of the feed-forward part relative to the channels.
        kernel_size: Window size in tokens, one number or one per axis. On maps that are smaller it
            is the map's.
        dilations: Dilation of each layer of each level. Default: 1 throughout.
        merging: Which corners a token of the next level is made of: `"all"`, or those that
            `"published"` weights of Swin UNETR were trained with.
        in_chans: Channels of a volume, such as the sequences of an MRI.
        num_classes: Outputs per voxel; 0 for the features instead.
        qkv_bias: Whether the attention's input projection has a bias.
        qk_scale: Factor of the logits. Default: `head_dim ** -0.5`.
        drop_rate: Dropout rate of tokens, projections and feed-forward parts.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0.
    """

    embed_dim: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    kernel_size: int | tuple[int, int, int] = 7
    dilations: tuple[tuple[int, ...], ...] | None = None
    merging: str = "all"
    in_chans: int = 1
    num_classes: int = 14
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    # Windows that shrink know no dropout of weights.
    attn_drop_rate: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)
        if self.merging not in CORNERS:
            raise ValueError(
                f"[NAUNETRConfig] 'merging' must be one of {', '.join(CORNERS)} but got "
                f"{self.merging!r}."
            )


class VolumeAttention(NeighborhoodAttention3D):
    """3-D neighborhood attention whose windows shrink to maps that are smaller than they are.

    Every token of such a map sees all others, as in Swin UNETR. (NAT pads such maps with zeros and
    sees those, which its published weights expect; no published weights expect it of volumes.)

    Shape:
        - Input and output: `[batch, depth, height, width, channels]`.
    """

    def attend(
        self, query: mx.array, key: mx.array, value: mx.array, lengths: Sizes | None = None
    ) -> mx.array:
        """Attention alone, `[B, *S, heads, head_dim]` each, without the projections."""
        size = query.shape[1:4]
        (query, key, value), lengths = self._large_enough([query, key, value], lengths)
        return crop(super().attend(query, key, value, lengths), size)

    def attend_packed(self, qkv: mx.array, lengths: Sizes | None = None) -> mx.array:
        """The same for what `project_packed` returns."""
        (padded,), lengths = self._large_enough([qkv], lengths)
        return crop(super().attend_packed(padded, lengths), qkv.shape[1:4])

    def _large_enough(
        self, arrays: list[mx.array], lengths: Sizes | None
    ) -> tuple[list[mx.array], Sizes | None]:
        """Samples may be smaller than a window where arrays may not."""
        size = arrays[0].shape[1:4]
        missing = [max(0, m - n) for m, n in zip(self.neighborhood.minimum_size, size, strict=True)]
        if not any(missing):
            return arrays, lengths
        widths = [(0, 0), *((0, n) for n in missing), (0, 0), (0, 0)]
        lengths = [size] * arrays[0].shape[0] if lengths is None else lengths
        return [mx.pad(x, widths) for x in arrays], lengths


def _attention(
    dim: int, num_heads: int, kernel_size: Any, *, pad_small_inputs: bool, **options: Any
) -> VolumeAttention:
    """What `Level` builds its layers with: windows shrink, nothing is padded."""
    return VolumeAttention(dim, num_heads, kernel_size, **options)


class NAUNETR(Classifier):
    """Segmentation of volumes with neighborhood attention.

    [`natten_zoo.tasks.volumes.segment_volume`][] makes a mask of a CT or an MRI with it.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, depth, height, width, in_chans]` of any size; the end of each axis is
          zero-padded to a multiple of [`multiple`][] and cropped from the output.
        - Output: `[batch, depth, height, width, num_classes]` logits.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import NAUNETR, NAUNETRConfig
        >>> config = NAUNETRConfig(8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=2)
        >>> NAUNETR(config)(mx.zeros((1, 16, 20, 24, 1))).shape
        (1, 16, 20, 24, 2)
    """

    Config = NAUNETRConfig
    TASK = "volume-segmentation"
    AXES = ("depth", "height", "width")

    def __init__(self, config: NAUNETRConfig) -> None:
        super().__init__(config)
        dim, count = config.embed_dim, len(config.depths)
        dims = [dim, *(dim * 2**i for i in range(count + 1))]  # of the voxels, of each map
        self.patch_embed = Conv3d(config.in_chans, dim, PATCH, stride=PATCH)
        self.pos_drop = nn.Dropout(config.drop_rate)
        schedule = drop_path_schedule(config.drop_path_rate, config.depths)
        self.levels = [
            Level(config, i, rates, partial(PatchMerging, merging=config.merging), None, _attention)
            for i, rates in enumerate(schedule)
        ]
        self.levels[-1].downsample = PatchMerging(dims[-2], config.merging)
        # The map above the last goes to the decoder as it is.
        self.skips = [
            ResidualBlock(dims[i] if i else config.in_chans, dims[i]) for i in range(count)
        ]
        self.bottom = ResidualBlock(dims[-1], dims[-1])
        self.decoders = [UpBlock(dims[i + 1], dims[i]) for i in reversed(range(count + 1))]
        self.add_classifier()
        init_weights(self)

    @property
    def num_features(self) -> int:
        """Channels of the classifier's input."""
        return self.config.embed_dim

    @property
    def multiple(self) -> int:
        """Sizes that are multiples of this are not padded."""
        return PATCH * 2 ** len(self.config.depths)

    def features(self, x: mx.array) -> list[mx.array]:
        """The tokens and the merged map of each level, normed: strides 2, 4, 8, ...

        One map more than levels, the first of `embed_dim` channels and each of twice as many.
        """
        self.check_input(x)
        x = self.pos_drop(self.patch_embed(pad_to_multiple(x, self.multiple)))
        maps = [x]
        for level in self.levels:
            x, _ = level(x)
            maps.append(x)
        return [layer_norm(y, eps=EPS) for y in maps]

    def forward_features(self, x: mx.array) -> mx.array:
        """The classifier's input: `[B, D, H, W, in_chans] -> [B, D, H, W, embed_dim]`."""
        size, maps = x.shape[1:-1], self.features(x)
        x = pad_to_multiple(x, self.multiple)
        inputs = zip(self.skips, [x, *maps[:-2]], strict=True)
        skips = [*(block(y) for block, y in inputs), maps[-2]]
        x = self.bottom(maps[-1])
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            x = decoder(x, skip)
        return crop(x, size)

    def stages(self) -> list[str]:
        """The encoder's; the decoder is on top of it."""
        return ["patch_embed", *level_stages("levels", self.config.depths)]

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn the state dict of MONAI's Swin UNETR into ours; see `.swin_unetr`."""
        return from_monai(weights)

    @classmethod
    def from_swin_unetr(
        cls, path: str | os.PathLike[str], model: str = "na_unetr_btcv", **overrides: Any
    ) -> NAUNETR:
        """Start a model from a Swin UNETR's weights, to be trained further.

        Also from those of its encoder alone, which self-supervised training makes. All of the
        encoder must fit; the decoder and the classifier are taken if they do, and the log lists
        what is left as initialized.

        Args:
            path: A checkpoint of MONAI's, such as `model.pt` of the bundle
                `swin_unetr_btcv_segmentation`, or `model_swinvit.pt`.
            model: The registered NA-UNETR to build.
            overrides: Arguments of its configuration to change, such as `num_classes`.

        Raises:
            CheckpointError: The file is damaged or not of a Swin UNETR.
            ValueError: The encoder does not fit; the message lists every weight that does not.
        """
        built = create_model(model, **overrides)
        if not isinstance(built, cls):
            raise ValueError(
                f"[{cls.__name__}.from_swin_unetr] 'model' must be a {cls.__name__} but {model!r} "
                f"is a {type(built).__name__}."
            )
        found = own_names(built, read_checkpoint(path))
        own: dict[str, mx.array] = dict(tree_flatten(built.parameters()))
        rest = {name: value for name, value in own.items() if not name.startswith(ENCODER)}
        fitting = {n for n in rest if n in found and found[n].shape == rest[n].shape}
        encoder = {name: value for name, value in found.items() if name.startswith(ENCODER)}
        load_strict(
            built, {**rest, **{name: found[name] for name in fitting}, **encoder}, str(path)
        )
        if fresh := [name for name in rest if name not in fitting]:
            logger.warning("%s: left as initialized: %s", path, ", ".join(fresh))
        return built

"""All-In-One: beats, downbeats, sections and their functions in music.

Kim and Nam, https://arxiv.org/abs/2307.16425; the weights are those of
https://github.com/mir-aidj/all-in-one. A track comes as one spectrogram per stem (bass, drums,
other, vocals). Each block looks far along time with dilated neighborhood attention, then across
stems. [`natten_zoo.tasks.music.analyze`][] makes times and labels of what the model says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers import (
    MLP,
    DinatAttention1D,
    DinatAttention2D,
    DropPath,
    TransformerLayer,
    drop_path_schedule,
)
from ..layers.norm import LayerNorm
from ..layers.padding import crop, pad_to
from ..layers.transformer_layer import EPS
from .base import Classifier, Config, classifier, rename, to_mlx_layout

# Window of the attention across stems, whatever the window in time.
STEM_KERNEL = 5
# Share of the frames that are a beat, a downbeat and a section's first, where training starts.
PRIORS = {"beat": 0.05, "downbeat": 0.0125, "section": 0.001}


@dataclass(frozen=True)
class AllInOneConfig(Config):
    """Configuration of an All-In-One model.

    Args:
        embed_dim: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        kernel_size: Window in time.
        dilation_factor: Block `i` has dilations `dilation_factor ** i` and twice that.
        dilation_max: Upper bound of the first of the two.
        mlp_ratio: Width of the feed-forward parts relative to their input's channels.
        num_stems: Spectrograms per track.
        num_bands: Frequency bands of a spectrogram.
        num_classes: Functions that a section can have.
        drop_conv_rate: Dropout rate in the convolutional front end.
        drop_rate: Dropout rate of the feed-forward parts.
        attn_drop_rate: Dropout rate of the attention weights and the attention's output.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
    """

    embed_dim: int = 24
    depth: int = 11
    num_heads: int = 2
    kernel_size: int = 5
    dilation_factor: int = 2
    dilation_max: int = 3200
    mlp_ratio: float = 4.0
    num_stems: int = 4
    num_bands: int = 81
    num_classes: int = 10
    drop_conv_rate: float = 0.2
    drop_rate: float = 0.2
    attn_drop_rate: float = 0.2
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 80 <= self.num_bands <= 106:
            raise ValueError(
                "[AllInOneConfig] 'num_bands' must be in 80..106, which the front end brings down "
                f"to one, but got {self.num_bands}."
            )


class MusicLogits(NamedTuple):
    """What the model says of each frame.

    Attributes:
        beat: `[batch, frames]`.
        downbeat: `[batch, frames]`.
        section: `[batch, frames]`: whether a section starts here.
        function: `[batch, frames, num_classes]`: which function its section has.
    """

    beat: mx.array
    downbeat: mx.array
    section: mx.array
    function: mx.array


class FrontEnd(nn.Module):
    """Three convolutions that fold all bands into channels: `[N, T, bands] -> [N, T, D]`."""

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.conv0 = nn.Conv2d(1, dim // 2, (3, 3), padding=(1, 0))
        self.conv1 = nn.Conv2d(dim // 2, dim, (1, 12))
        self.conv2 = nn.Conv2d(dim, dim, (3, 3), padding=(1, 0))
        self.pool = nn.MaxPool2d((1, 3))
        self.norm = LayerNorm(dim, eps=EPS)
        self.drop = nn.Dropout(config.drop_conv_rate)

    def __call__(self, x: mx.array) -> mx.array:
        x = x[..., None]  # [N, T, 81, 1]
        x = self.drop(nn.elu(self.pool(self.conv0(x))))  # [N, T, 26, D / 2]
        x = self.drop(nn.elu(self.pool(self.conv1(x))))  # [N, T, 5, D]
        x = nn.elu(self.pool(self.conv2(x))).squeeze(2)  # [N, T, D]
        return self.drop(self.norm(x))


class TimeLayer(nn.Module):
    """Two attentions along time, one looking twice as far, and a feed-forward part of both.

    Args:
        config: The model's configuration.
        dilation: Of the nearer attention.
        drop_path: Rate of stochastic depth.

    Shape:
        - Input and output: `[N, T, D]`. Both attentions see zeros up to the window of the wider
          one where there are fewer frames, as the published weights expect.
    """

    BRANCHES = 3

    def __init__(self, config: AllInOneConfig, dilation: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.attn, self.attn2 = (
            DinatAttention1D(
                dim,
                config.num_heads,
                config.kernel_size,
                reach,
                attn_drop=config.attn_drop_rate,
                proj_drop=config.attn_drop_rate,
            )
            for reach in (dilation, 2 * dilation)
        )
        self.norm2 = LayerNorm(2 * dim, eps=EPS)
        hidden_dim = int(2 * dim * config.mlp_ratio)
        self.mlp = MLP(2 * dim, hidden_dim, config.drop_rate, out_dim=dim)
        self.drop_path = DropPath(drop_path)

    def __call__(self, x: mx.array) -> mx.array:
        y = pad_to(self.norm1(x), self.attn2.neighborhood.minimum_size)
        near, far = (
            x + self.drop_path(crop(attn(y), x.shape[1:2])) for attn in (self.attn, self.attn2)
        )
        both = mx.concatenate([near, far], axis=-1)  # [N, T, 2 D]
        return (near + far) / 2 + self.drop_path(self.mlp(self.norm2(both)))


class Block(nn.Module):
    """Attention along time for each stem, then across stems: `[B, stems, T, D]` in and out."""

    def __init__(self, config: AllInOneConfig, dilation: int, drop_path: float) -> None:
        super().__init__()
        self.timelayer = TimeLayer(config, dilation, drop_path)
        self.instlayer = TransformerLayer(
            DinatAttention2D(
                config.embed_dim,
                config.num_heads,
                STEM_KERNEL,
                attn_drop=config.attn_drop_rate,
                proj_drop=config.attn_drop_rate,
            ),
            config.embed_dim,
            config.mlp_ratio,
            config.drop_rate,
            drop_path,
        )

    def __call__(self, x: mx.array) -> mx.array:
        stems = x.shape[:2]
        x = self.timelayer(x.flatten(0, 1))  # [B stems, T, D]
        return self.instlayer(mx.unflatten(x, 0, stems))


class AllInOne(Classifier):
    """Music structure from the spectrograms of a track's stems.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, stems, frames, bands]`: for the published weights bass, drums, other
          and vocals, 100 frames a second, 81 logarithmic bands of log magnitudes.
        - Output: `MusicLogits`.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import AllInOne, AllInOneConfig
        >>> model = AllInOne(AllInOneConfig(depth=2)).eval()
        >>> model(mx.zeros((1, 4, 200, 81))).function.shape
        (1, 200, 10)
    """

    Config = AllInOneConfig
    TASK = "audio-classification"
    CLASSIFIERS = ("function_classifier",)

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__(config)
        self.embeddings = FrontEnd(config)
        (rates,) = drop_path_schedule(config.drop_path_rate, (config.depth,))
        self.layers = [
            Block(config, min(config.dilation_factor**i, config.dilation_max), rate)
            for i, rate in enumerate(rates)
        ]
        self.norm = LayerNorm(config.embed_dim, eps=EPS)
        for name, prior in PRIORS.items():
            head = nn.Linear(self.num_features, 1)
            head.bias = mx.array([math.log(prior / (1 - prior))])
            setattr(self, f"{name}_classifier", head)
        self.add_classifier()

    @property
    def num_features(self) -> int:
        """Channels of the classifiers' input: those of all stems."""
        return self.config.num_stems * self.config.embed_dim

    def features(self, x: mx.array) -> list[mx.array]:
        """The map after each block, `[batch, stems, frames, embed_dim]` each."""
        self._check_input(x)
        x = mx.unflatten(self.embeddings(x.flatten(0, 1)), 0, x.shape[:2])
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward_features(self, x: mx.array) -> mx.array:
        """The classifiers' input: `[B, stems, T, bands] -> [B, T, stems * embed_dim]`."""
        return self.norm(self.features(x)[-1]).swapaxes(1, 2).flatten(2)

    def __call__(self, x: mx.array) -> MusicLogits:
        x = self.forward_features(x)
        beat, downbeat, section = (self[f"{name}_classifier"](x).squeeze(-1) for name in PRIORS)
        return MusicLogits(beat, downbeat, section, self.function_classifier(x))

    def add_classifier(self) -> None:
        """A fresh classifier of functions; those of beats and downbeats have no classes."""
        self.function_classifier = classifier(self.num_features, self.config.num_classes)

    def stages(self) -> list[str]:
        """The front end, then each layer."""
        return ["embeddings", *(f"layers.{index}" for index in range(self.config.depth))]

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's state dict into our names and layouts.

        all-in-one-mlx's files, which have upstream's names and MLX's layouts, are known by the
        single channel that comes last in their first convolution.
        """
        channels_last = weights["embeddings.conv0.weight"].shape[-1] == 1
        return {
            rename(name, _UPSTREAM_NAMES): value if channels_last else to_mlx_layout(value)
            for name, value in weights.items()
        }

    def _check_input(self, x: mx.array) -> None:
        stems, bands = self.config.num_stems, self.config.num_bands
        if x.ndim != 4 or (x.shape[1], x.shape[3]) != (stems, bands):
            raise ValueError(
                f"[AllInOne] the input must be [batch, {stems} stems, frames, {bands} bands] but "
                f"got {x.shape}."
            )


_UPSTREAM_NAMES = (
    (r"^encoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention(2?)\.self\.", r".attn\1."),
    (r"\.attention(2?)\.output\.dense\.", r".attn\1.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"_classifier\.classifier\.", "_classifier."),
)

"""HDiT, the Hourglass Diffusion Transformer: k-diffusion's `image_transformer_v2`.

Crowson et al., Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion
Transformers, https://arxiv.org/abs/2401.11605; code of https://github.com/crowsonkb/k-diffusion
(MIT). Pixels become tokens, tokens merge by fours from level to level and split again on the way
back; the fine levels attend to neighborhoods, the coarse one to all of the image.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from dataclasses import replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .base import Model
from .hdit_config import HDiTConfig
from .hdit_layers import (
    AdaRMSNorm,
    Attention,
    FeedForward,
    FourierFeatures,
    Layer,
    Mapping,
    Merge,
    RMSNorm,
    Split,
)

# Settings of non-leaking augmentation, which k-diffusion's training tells the network.
AUGMENTATIONS = 9


class HDiT(Model):
    """Hourglass Diffusion Transformer: predicts, from a noisy image, what is below the noise.

    Parameters are named as in k-diffusion.

    Args:
        config: The model's configuration.

    Shape:
        - Image: `[batch, height, width, in_chans]`; sides are multiples of the patch's times two
          for each level but one.
        - Noise: `[batch]`, the standard deviation (or the time of a flow).
        - Labels, of a model that has them: integers `[batch]`.
        - Conditioning, of a model that has it: `[batch, cond_dim]`.
        - Augmentation, optional: `[batch, 9]`.
        - Output: as the image.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import HDiT, HDiTConfig
        >>> model = HDiT(HDiTConfig(widths=(32, 64), depths=(1, 1), head_dims=16))
        >>> model(mx.zeros((1, 64, 96, 3)), mx.ones(1)).shape
        (1, 64, 96, 3)
    """

    Config = HDiTConfig
    TASK = "unconditional-image-generation"

    def __init__(self, config: HDiTConfig) -> None:
        super().__init__(config)
        widths, dims = config.widths, config.mapping_dim
        self.patch_in = Merge(config.in_chans, widths[0], config.patch)
        self.time_emb = FourierFeatures(1, dims)
        self.time_in_proj = nn.Linear(dims, dims, bias=False)
        self.aug_emb = FourierFeatures(AUGMENTATIONS, dims)
        self.aug_in_proj = nn.Linear(dims, dims, bias=False)
        self.add_labels()
        if config.cond_dim:
            self.mapping_cond_in_proj = nn.Linear(config.cond_dim, dims, bias=False)
        hidden = config.mapping_hidden_dim or 3 * dims
        self.mapping = Mapping(config.mapping_depth, dims, hidden, config.mapping_drop_rate)
        *outer, last = range(len(widths))
        self.down_levels = [_level(config, level, 0) for level in outer]
        self.up_levels = [_level(config, level, config.depths[level]) for level in outer]
        self.mid_level = _level(config, last, 0)
        pairs = [*pairwise(widths)]
        self.merges = [Merge(fine, coarse) for fine, coarse in pairs]
        self.splits = [Split(coarse, fine) for fine, coarse in pairs]
        self.out_norm = RMSNorm(widths[0])
        self.patch_out = Split(widths[0], config.in_chans, config.patch, mixes=False)
        self.patch_out.proj.weight = mx.zeros_like(self.patch_out.proj.weight)

    def __call__(
        self,
        x: mx.array,
        sigma: mx.array,
        labels: mx.array | None = None,
        cond: mx.array | None = None,
        augmented: mx.array | None = None,
    ) -> mx.array:
        self.check_input(x)
        scales = self.conditioning(sigma, labels, cond, augmented)
        x = self.patch_in(x)
        skips = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            x = _through(level, x, scales)
            skips.append(x)
            x = merge(x)
        x = _through(self.mid_level, x, scales)
        for level, split in zip(self.up_levels[::-1], self.splits[::-1], strict=True):
            x = _through(level, split(x, skips.pop()), scales)
        return self.patch_out(self.out_norm(x))

    def conditioning(
        self,
        sigma: mx.array,
        labels: mx.array | None = None,
        cond: mx.array | None = None,
        augmented: mx.array | None = None,
    ) -> mx.array:
        """What all norms are scaled by: noise and whatever else is known, `[batch, mapping_dim]`.

        Raises:
            ValueError: Labels or conditioning are missing, or are none of the model's.
        """
        config = self.config
        for name, value, dims in (
            ("labels", labels, config.num_labels),
            ("cond", cond, config.cond_dim),
        ):
            if (value is None) != (dims == 0):
                wanted = "be given to a model that has them" if dims else "be None without them"
                raise ValueError(f"[HDiT] '{name}' must {wanted} but got {value}.")
        dtype = self.out_norm.scale.dtype
        told = mx.log(sigma.astype(mx.float32)) / 4 if config.time == "log_sigma" else sigma
        if augmented is None:
            augmented = mx.zeros((sigma.shape[0], AUGMENTATIONS))
        total = self.time_in_proj(self.time_emb(told[:, None]).astype(dtype))
        total = total + self.aug_in_proj(self.aug_emb(augmented).astype(dtype))
        if labels is not None:
            total = total + self.class_emb(labels)
        if cond is not None:
            total = total + self.mapping_cond_in_proj(cond.astype(dtype))
        return self.mapping(total)

    def denoise(self, x: mx.array, sigma: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        r"""The denoised image, by the preconditioning of Karras et al., in float32.

        $$
        D(x; \sigma) = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2} x +
        \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}
        F\left(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}}; \sigma\right)
        $$

        Source: https://arxiv.org/abs/2206.00364, table 1.

        Args:
            x: The image plus noise, `[batch, height, width, in_chans]`.
            sigma: Standard deviation of that noise, `[batch]`.
            args: Whatever else the network takes.
            kwargs: Likewise.
        """
        skip, out, scale = self.preconditioning(sigma)
        x = x.astype(mx.float32)
        found = self((x * scale).astype(self.out_norm.scale.dtype), sigma, *args, **kwargs)
        return x * skip + found.astype(mx.float32) * out

    def preconditioning(self, sigma: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """The factors of image, output and input in `denoise`, `[batch, 1, 1, 1]` each."""
        sigma = sigma.astype(mx.float32)[:, None, None, None]
        data = self.config.sigma_data
        total = sigma.square() + data**2
        return data**2 / total, sigma * data * mx.rsqrt(total), mx.rsqrt(total)

    def reset_labels(self, num_labels: int) -> None:
        """Give the model fresh labels, or none."""
        self.config = replace(self.config, num_labels=num_labels)
        self.pop("class_emb", None)
        self.add_labels()

    def add_labels(self) -> None:
        """The embedding of labels, of the configuration's size, drawn."""
        if self.config.num_labels:
            shape = (self.config.num_labels, self.config.mapping_dim)
            self.class_emb = nn.Embedding(*shape)
            self.class_emb.weight = mx.random.normal(shape)

    def check_input(self, x: Any) -> None:
        """Refuse images whose channels or sides do not fit; nothing is computed."""
        super().check_input(x)
        config = self.config
        whole = 2 ** (len(config.widths) - 1)
        steps = [side * whole for side in config.patch]
        size = x.shape[1:3]
        if any(n % step or not n for n, step in zip(size, steps, strict=True)):
            raise ValueError(
                f"[HDiT] 'x' must have sides that are multiples of {steps[0]} and {steps[1]} but "
                f"got {size[0]}x{size[1]}."
            )
        for level, (kind, kernel) in enumerate(
            zip(config.attentions, config.kernel_sizes, strict=True)
        ):
            tokens = [n // side // 2**level for n, side in zip(size, config.patch, strict=True)]
            small = kind == "neighborhood" and min(tokens) < kernel
            if small or (kind == "shifted-window" and any(n % kernel for n in tokens)):
                wanted = "at least" if small else "multiples of"
                raise ValueError(
                    f"[HDiT] 'x' must give level {level} {wanted} {kernel} tokens per axis but "
                    f"{size[0]}x{size[1]} pixels give {tokens[0]}x{tokens[1]}."
                )

    def set_dtype(self, dtype: mx.Dtype, *args: Any, **kwargs: Any) -> None:
        """Convert the weights, but for the random projections of noise, which stay as drawn."""
        drawn = [(module, module.weight) for module in (self.time_emb, self.aug_emb)]
        super().set_dtype(dtype, *args, **kwargs)
        for module, weight in drawn:
            module.weight = weight

    @staticmethod
    def sanitize(weights: Dictionary[str, mx.array]) -> dict[str, mx.array]:
        """Leave out k-diffusion's tables of rotary frequencies, which follow from the sizes."""
        return {
            name: value for name, value in weights.items() if not name.endswith("pos_emb.freqs")
        }


def _level(config: HDiTConfig, level: int, first: int) -> list[Layer]:
    """The layers of a level; every other one, counted from `first`, shifts its windows."""
    dims, cond, drop = config.widths[level], config.mapping_dim, config.drop_rate[level]  # type: ignore[index]
    kind, size = config.attentions[level], config.kernel_sizes[level]  # type: ignore[index]
    layers = []
    for index in range(first, first + config.depths[level]):
        attention = None
        if kind != "none":
            shift = size // 2 if index % 2 else 0
            head = config.head_dims[level]  # type: ignore[index]
            attention = Attention(dims, head, cond, kind, size, shift, drop)
        hidden = config.hidden_dims[level]  # type: ignore[index]
        layers.append(Layer(attention, FeedForward(AdaRMSNorm(dims, cond), dims, hidden, drop)))
    return layers


def _through(layers: list[Layer], x: mx.array, scales: mx.array) -> mx.array:
    for layer in layers:
        x = layer(x, scales)
    return x

"""NAF: brings any vision model's features to any resolution, guided by the image.

Neighborhood Attention Filtering, https://arxiv.org/abs/2511.18452; weights of
https://github.com/valeoai/NAF. Every pixel compares itself with the image's own coarse cells
around it and mixes the features of those cells. Only the image is encoded, so one set of weights
serves every feature extractor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..layers.resize import AdaptiveAveragePool, resize_bilinear
from ..ops.functional import na2d
from .base import Config, Model

# Images are looked at with up to this many pixels per pixel of the output, and axis.
MAX_PIXELS = 4


@dataclass(frozen=True)
class NAFConfig(Config):
    """Configuration of a NAF.

    Args:
        embed_dim: Channels of queries and keys.
        num_heads: Attention heads; must divide the channels of the features too.
        kernel_size: Cells that a pixel sees, per axis.
        depth: Blocks of each of the two image encoders.
        num_groups: Groups of their norms.
        rope_base: Longest period of the rotary position embedding; the image spans 2.
        in_chans: Channels of the image.
    """

    embed_dim: int = 256
    num_heads: int = 4
    kernel_size: int = 9
    depth: int = 2
    num_groups: int = 8
    rope_base: float = 100.0
    in_chans: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                "[NAFConfig] 'embed_dim' must be divisible by 4 times 'num_heads' but got "
                f"{self.embed_dim} and {self.num_heads}."
            )


class ReflectConv2d(nn.Conv2d):
    """A convolution of the same size out, over an image that is mirrored at its borders."""

    def __call__(self, x: mx.array) -> mx.array:
        margin = self.weight.shape[1] // 2
        return super().__call__(mirror(mirror(x, 1, margin), 2, margin))


def mirror(x: mx.array, axis: int, margin: int) -> mx.array:
    """Lengthen an axis at both ends by its mirror image, without repeating the border.

    Examples:
        >>> import mlx.core as mx
        >>> mirror(mx.array([1, 2, 3, 4]), 0, 2).tolist()
        [3, 2, 1, 2, 3, 4, 3, 2]
    """
    if not margin:
        return x
    last = x.shape[axis] - 1
    if last < margin:
        raise ValueError(
            f"[NAF] 'image' must have {margin + 1} pixels or more per axis but got {x.shape}."
        )
    index = [*range(margin, 0, -1), *range(last + 1), *range(last - 1, last - 1 - margin, -1)]
    return mx.take(x, mx.array(index), axis=axis)


class GroupNorm(nn.GroupNorm):
    """Group norm whose means are taken axis by axis.

    A group spans the whole image; in one float32 sum over it, as MLX's own takes, digits are lost
    (2e-4 at 112 x 144 pixels where this loses 7e-7).
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.unflatten(x.astype(mx.float32), -1, (self.num_groups, -1))  # [B, H, W, groups, d]
        y = y - _group_means(y)
        y = y * mx.rsqrt(_group_means(y.square()) + self.eps)
        return (self.weight * y.flatten(-2) + self.bias).astype(x.dtype)


def _group_means(x: mx.array) -> mx.array:
    for axis in (1, 2, 4):
        x = x.mean(axis, keepdims=True)
    return x


class EncoderBlock(nn.Module):
    """Twice norm, SiLU, convolution, without a shortcut."""

    def __init__(self, dim: int, kernel_size: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(num_groups, dim)
        self.conv1 = ReflectConv2d(dim, dim, kernel_size)
        self.norm2 = GroupNorm(num_groups, dim)
        self.conv2 = ReflectConv2d(dim, dim, kernel_size)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv1(nn.silu(self.norm1(x)))
        return self.conv2(nn.silu(self.norm2(x)))


def rotate(x: mx.array, base: float) -> mx.array:
    r"""Rotary position embedding on two axes.

    Of each head's channels, the pair $(c, c + d / 2)$ turns by $2 \pi y / p_c$ in the
    first quarter of the channels and by $2 \pi x / p_c$ in the second, with rows and columns
    $y, x$ in -1..1 and periods $p$ from 1 up to `base`. The product of a query and a
    key then depends on how they lie to each other. Source: Su et al., RoFormer,
    https://arxiv.org/abs/2104.09864.

    Args:
        x: `[batch, height, width, heads, head_dim]`; `head_dim` is a multiple of 4.
        base: Longest period, excluded.
    """
    height, width, quarter = *x.shape[1:3], x.shape[-1] // 4
    periods = base ** (mx.arange(quarter) / quarter)
    rows, columns = (
        2 * math.pi * ((2 * mx.arange(n) + 1) / n - 1)[:, None] / periods for n in (height, width)
    )  # [n, quarter]
    shape = height, width, quarter
    angles = mx.concatenate(
        [mx.broadcast_to(rows[:, None], shape), mx.broadcast_to(columns, shape)], axis=-1
    )[:, :, None]  # [H, W, 1, head_dim / 2]
    cos, sin = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class ImageEncoder(nn.Module):
    """Per pixel colors, and what lies around them: `[B, H, W, C]` to `[B, *size, heads, d]`."""

    def __init__(self, config: NAFConfig) -> None:
        super().__init__()
        self.encoder, self.sem_encoder = (
            [
                ReflectConv2d(config.in_chans, config.embed_dim // 2, kernel_size),
                *(
                    EncoderBlock(config.embed_dim // 2, kernel_size, config.num_groups)
                    for _ in range(config.depth)
                ),
            ]
            for kernel_size in (1, 3)
        )
        self.num_heads, self.rope_base = config.num_heads, config.rope_base

    def __call__(self, image: mx.array, size: Sequence[int]) -> mx.array:
        image = resize_bilinear(image, _looked_at(image.shape[1:3], size))
        parts = []
        for encoder in (self.encoder, self.sem_encoder):
            x = image
            for layer in encoder:
                x = layer(x)
            parts.append(x)
        x = pool(mx.concatenate(parts, axis=-1), size)
        return rotate(mx.unflatten(x, -1, (self.num_heads, -1)), self.rope_base)


class NAF(Model):
    """Feature upsampler: cross-attention from the pixels to the features' coarse cells.

    Args:
        config: The model's configuration.

    Shape:
        - Image: `[batch, height, width, in_chans]`, normalized as for the feature extractor.
        - Features: `[batch, rows, columns, channels]` of that image, any extractor's; at least
          `kernel_size` rows and columns.
        - Output: `[batch, *size, channels]`, by default at the image's size.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import NAF, NAFConfig
        >>> model = NAF(NAFConfig(embed_dim=32, depth=1)).eval()
        >>> model(mx.zeros((1, 64, 96, 3)), mx.zeros((1, 16, 24, 384))).shape
        (1, 64, 96, 384)
    """

    Config = NAFConfig
    TASK = "image-feature-extraction"

    def __init__(self, config: NAFConfig) -> None:
        super().__init__(config)
        self.image_encoder = ImageEncoder(config)

    def __call__(
        self, image: mx.array, features: mx.array, size: Sequence[int] | None = None
    ) -> mx.array:
        heads = self.config.num_heads
        size = tuple(size or image.shape[1:3])
        self._check(image, features, size)
        query = self.image_encoder(image, size)  # [B, *size, heads, head_dim]
        cells = features.shape[1:3]
        key = mx.unflatten(pool(query.flatten(-2), cells), -1, (heads, -1))
        value = mx.unflatten(features, -1, (heads, -1)).astype(query.dtype)
        dilation = (1, 1)
        if any(n % m for n, m in zip(size, cells, strict=True)):
            # Pixels without a cell of their own: cells as large pixels, the next a dilation away.
            key, value = (resize_nearest(x, size) for x in (key, value))
            dilation = size[0] // cells[0], size[1] // cells[1]
        out = cast(mx.array, na2d(query, key, value, self.config.kernel_size, dilation=dilation))
        return out.flatten(-2)

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's state dict into our layouts, without its table of rotary periods."""
        kept = {k: v for k, v in weights.items() if not k.endswith("rope.periods")}
        return Model.sanitize(kept)

    def _check(self, image: mx.array, features: mx.array, size: tuple[int, ...]) -> None:
        config = self.config
        channels, heads, kernel = config.in_chans, config.num_heads, config.kernel_size
        if image.ndim != 4 or image.shape[-1] != channels:
            raise ValueError(
                f"[NAF] 'image' must be [batch, height, width, {channels}] but got {image.shape}."
            )
        if features.ndim != 4 or features.shape[0] != image.shape[0] or features.shape[-1] % heads:
            raise ValueError(
                f"[NAF] 'features' must be [{image.shape[0]}, rows, columns, a multiple of {heads}]"
                f" but got {features.shape}."
            )
        if min(features.shape[1:3]) < kernel or any(
            new < old for new, old in zip(size, features.shape[1:3], strict=True)
        ):
            raise ValueError(
                f"[NAF] 'features' must have from {kernel} rows and columns up to the output's "
                f"{size} but got {features.shape[1:3]}."
            )


def resize_nearest(x: mx.array, size: Sequence[int]) -> mx.array:
    """Give each cell of a larger map the value of the cell that its center lies in.

    Examples:
        >>> import mlx.core as mx
        >>> resize_nearest(mx.array([1, 2]).reshape(1, 1, 2, 1), (1, 5)).flatten().tolist()
        [1, 1, 2, 2, 2]
    """
    for axis, new in enumerate(size, start=1):
        old = x.shape[axis]
        if old != new:
            x = mx.take(x, mx.array([(2 * i + 1) * old // (2 * new) for i in range(new)]), axis)
    return x


def pool(x: mx.array, size: Sequence[int]) -> mx.array:
    """The means of `size` parts of a map."""
    return x if x.shape[1:3] == tuple(size) else AdaptiveAveragePool(size)(x)


def _looked_at(image: Sequence[int], size: Sequence[int]) -> Sequence[int]:
    """The size at which an image is encoded; both axes obey the smaller limit, as upstream."""
    limits = [MAX_PIXELS * n for n in size]
    if all(n <= limit for n, limit in zip(image, limits, strict=True)):
        return image
    return [min(n, *limits) for n in image]

"""What UPerNet puts on the maps of a body: convolutions, pooling and a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..layers.resize import AdaptiveAveragePool, resize_bilinear
from ..ops.gpu.device import on_gpu


class ConvModule(nn.Module):
    """Convolution, batch norm, ReLU, at the same size: `[B, H, W, C] -> [B, H, W, D]`.

    Of several maps, `C` are the channels of all, side by side. On a CPU they are convolved one by
    one: the patches that MLX copies for a convolution there take nine times the input's memory.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=False)
        self.bn = nn.BatchNorm(channels)

    def __call__(self, *maps: mx.array) -> mx.array:
        if on_gpu() and len(maps) > 1:
            maps = (mx.concatenate(list(maps), axis=-1),)
        ends = accumulate(x.shape[-1] for x in maps[:-1])
        y: Any = 0
        for x, weight in zip(maps, mx.split(self.conv.weight, list(ends), axis=-1), strict=True):
            part = copy(self.conv)
            part.weight = weight
            y = y + part(x)
        return nn.relu(self.bn(y))


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, then a feature pyramid down to the finest.

    Args:
        dims: Channels of the maps, finest first.
        channels: Channels of the head.
        pool_sizes: Cells per axis of the poolings.
        num_classes: Outputs per pixel.
        drop_rate: Dropout rate of channels before the classifier.
    """

    def __init__(
        self,
        dims: Sequence[int],
        channels: int,
        pool_sizes: Sequence[int],
        num_classes: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        last = dims[-1]
        self.psp_modules = [
            [AdaptiveAveragePool(cells), ConvModule(last, channels, 1)] for cells in pool_sizes
        ]
        self.bottleneck = ConvModule(last + len(pool_sizes) * channels, channels, 3)
        self.lateral_convs = [ConvModule(dim, channels, 1) for dim in dims[:-1]]
        self.fpn_convs = [ConvModule(channels, channels, 3) for _ in dims[:-1]]
        self.fpn_bottleneck = ConvModule(len(dims) * channels, channels, 3)
        self.dropout = nn.Dropout2d(drop_rate)
        self.conv_seg = pixel_classifier(channels, num_classes)

    def fuse(self, maps: Sequence[mx.array]) -> mx.array:
        """The maps of the body, finest first, as one of the finest's size and `channels`."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self._pool(maps[-1]))
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize_bilinear(laterals[i + 1], laterals[i].shape[1:3])
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        pyramid.append(laterals[-1])
        size = pyramid[0].shape[1:3]
        return self.fpn_bottleneck(*(resize_bilinear(x, size) for x in pyramid))

    def classify(self, x: mx.array) -> mx.array:
        """What `fuse` returns as logits: `[B, H, W, channels] -> [B, H, W, classes]`."""
        return self.conv_seg(self.dropout(x))

    def _pool(self, x: mx.array) -> mx.array:
        size = x.shape[1:3]
        pooled = (resize_bilinear(conv(pool(x)), size) for pool, conv in self.psp_modules)
        return self.bottleneck(x, *pooled)


class AuxiliaryHead(nn.Module):
    """One convolution and a classifier on one map; it only helps training."""

    def __init__(self, dim: int, channels: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.convs = [ConvModule(dim, channels, 3)]
        self.dropout = nn.Dropout2d(drop_rate)
        self.conv_seg = pixel_classifier(channels, num_classes)

    def __call__(self, x: mx.array) -> mx.array:
        for conv in self.convs:
            x = conv(x)
        return self.conv_seg(self.dropout(x))


def pixel_classifier(channels: int, num_classes: int) -> nn.Module:
    """A linear classifier of each pixel; the identity for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Conv2d(channels, num_classes, 1)
    layer.weight = mx.random.normal(layer.weight.shape, scale=0.01)
    return layer

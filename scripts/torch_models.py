"""UPerNet and NA-UNETR in PyTorch, and the peer in torch of any of our models that has one.

As in `scripts/torch_nat.py`, a state dict of ours, in torch's layout, loads strictly. Maps are
`[B, *S, C]` where tokens attend and else `[B, C, *S]`, inputs and outputs, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch import nn
from torch.nn import functional as F
from torch_attention import prepare
from torch_nat import Body, Layer, Level, TorchNAT

from natten_zoo.models import NATConfig, NAUNETRConfig, UPerNetConfig
from natten_zoo.models.na_unetr import PATCH
from natten_zoo.models.na_unetr_blocks import CORNERS


def torch_peer(config: Any, how: str = "dense") -> nn.Module:
    """A model of this configuration, with weights of its own."""
    peers = ((NATConfig, TorchNAT), (UPerNetConfig, TorchUPerNet), (NAUNETRConfig, TorchNAUNETR))
    for kind, peer in peers:
        if isinstance(config, kind):
            return peer(config, how)
    raise NotImplementedError(f"there is no peer in torch for a {type(config).__name__}")


def torch_weights(model: Any) -> dict[str, torch.Tensor]:
    """Those of one of our models in torch's layout."""

    def of_torch(name: str, x: mx.array) -> torch.Tensor:
        convolves = name.endswith(".weight") and x.ndim > 2
        return torch.from_numpy(np.array(mx.moveaxis(x, -1, 1) if convolves else x))

    return {name: of_torch(name, x) for name, x in tree_flatten(model.parameters())}


def compile_parts(model: nn.Module, which: str, x: torch.Tensor, **options: Any) -> None:
    """Has torch compile the `"blocks"`, each kind and size once, or the `"whole"` model.

    Args:
        model: In evaluation.
        which: These, or `"graphs"`, the whole as CUDA graphs, or `"none"`.
        x: An input of the size that the model is for.
        options: Of `torch.compile`.
    """
    prepare(model, x)
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if which == "graphs":
        options["mode"] = "reduce-overhead"
    for part in {"blocks": blocks, "none": []}.get(which, [model]):
        part.compile(dynamic=False, **options)


# ---- UPerNet


class TorchUPerNet(nn.Module):
    """`[B, 3, H, W] -> [B, classes, H, W]`."""

    def __init__(self, config: UPerNetConfig, how: str = "dense") -> None:
        super().__init__()
        self.backbone = NormedBody(config.backbone, how)
        self.decode_head = UPerHead(config)
        self.auxiliary_head = AuxiliaryHead(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return resize(self.decode_head(self.backbone(x)), x.shape[2:])


class NormedBody(Body):
    """Each level's map, normed."""

    def __init__(self, config: NATConfig, how: str) -> None:
        super().__init__(config, how)
        for i in range(len(config.depths)):
            self.add_module(f"norm{i}", nn.LayerNorm(config.embed_dim * 2**i))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = enumerate(self.maps(x))
        return [getattr(self, f"norm{i}")(y).permute(0, 3, 1, 2) for i, y in maps]


class ConvModule(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class UPerHead(nn.Module):
    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        dims = [config.backbone.embed_dim * 2**i for i in range(len(config.backbone.depths))]
        channels, cells = config.channels, config.pool_sizes
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), ConvModule(dims[-1], channels, 1)) for n in cells
        )
        self.bottleneck = ConvModule(dims[-1] + len(cells) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in dims[:-1])
        self.fpn_bottleneck = ConvModule(len(dims) * channels, channels, 3)
        self.dropout = nn.Dropout2d(config.head_drop_rate)
        self.conv_seg = nn.Conv2d(channels, config.num_classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        last, sizes = maps[-1], [x.shape[2:] for x in maps]
        pooled = [resize(pool(last), sizes[-1]) for pool in self.psp_modules]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize(laterals[i + 1], sizes[i])
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        pyramid = [resize(x, sizes[0]) for x in (*pyramid, laterals[-1])]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(pyramid, 1))))


class AuxiliaryHead(nn.Module):
    """Weights that a checkpoint has; the logits need none of them."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        dim = config.backbone.embed_dim * 2 ** (len(config.backbone.depths) - 2)
        self.convs = nn.ModuleList([ConvModule(dim, config.aux_channels, 3)])
        self.conv_seg = nn.Conv2d(config.aux_channels, config.num_classes, 1)


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


# ---- NA-UNETR


class TorchNAUNETR(nn.Module):
    """`[B, C, D, H, W] -> [B, classes, D, H, W]`, for sizes that ours does not pad."""

    def __init__(self, config: NAUNETRConfig, how: str = "dense") -> None:
        super().__init__()
        dim, count = config.embed_dim, len(config.depths)
        dims = [dim, *(dim * 2**i for i in range(count + 1))]
        merging = partial(PatchMerging, merging=config.merging)
        self.patch_embed = nn.Conv3d(config.in_chans, dim, PATCH, PATCH)
        self.levels = nn.ModuleList(Level(config, i, how, merging, rank=3) for i in range(count))
        self.skips = nn.ModuleList(
            ResidualBlock(dims[i] if i else config.in_chans, dims[i]) for i in range(count)
        )
        self.bottom = ResidualBlock(dims[-1], dims[-1])
        ups = [UpBlock(dims[i + 1], dims[i]) for i in reversed(range(count + 1))]
        self.decoders = nn.ModuleList(ups)
        self.head = nn.Linear(dim, config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.patch_embed(x).permute(0, 2, 3, 4, 1)]
        for level in self.levels:
            maps.append(level(maps[-1])[0])
        maps = [F.layer_norm(y, y.shape[-1:]).permute(0, 4, 1, 2, 3) for y in maps]
        inputs = zip(self.skips, [x, *maps[:-2]], strict=True)
        skips = [*(block(y) for block, y in inputs), maps[-2]]
        y = self.bottom(maps[-1])
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            y = decoder(y, skip)
        return pointwise(self.head, y)


class PatchMerging(nn.Module):
    def __init__(self, dim: int, merging: str) -> None:
        super().__init__()
        self.corners = [tuple(map(int, corner)) for corner in CORNERS[merging].split()]
        self.norm = nn.LayerNorm(8 * dim)
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[:, i::2, j::2, k::2] for i, j, k in self.corners]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_dim, dim, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(dim, dim, 3, padding=1, bias=False)
        self.conv3 = nn.Linear(in_dim, dim, bias=False) if in_dim != dim else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(F.instance_norm(self.conv1(x)))
        y = F.instance_norm(self.conv2(y))
        way = x if self.conv3 is None else F.instance_norm(pointwise(self.conv3, x))
        return F.leaky_relu(y + way)


class UpBlock(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(in_dim, 8 * dim, bias=False)
        self.block = ResidualBlock(2 * dim, dim)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x.permute(0, 2, 3, 4, 1))
        x = x.unflatten(-1, (2, 2, 2, -1))  # [B, D, H, W, 2, 2, 2, C]
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(skip.shape)  # [B, C, 2D, 2H, 2W]
        return self.block(torch.cat([x, skip], 1))


BLOCKS = Layer, ResidualBlock


def pointwise(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A linear layer of each voxel's channels."""
    return F.conv3d(x, linear.weight[..., None, None, None], linear.bias)

"""NAT in PyTorch, the peer of `scripts/benchmark_models.py` and `scripts/gpu_models.py`.

Parameter names are upstream's: a state dict of ours, back in torch's layout, loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch_attention import Attention

from natten_zoo.models import NATConfig


class Layer(nn.Module):
    def __init__(
        self, dim: int, config: Any, i: int, dilation: Any, how: str, rank: int = 2
    ) -> None:
        super().__init__()
        hidden, heads = int(dim * config.mlp_ratio), config.num_heads[i]
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, config.kernel_size, dilation, how, rank)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        scale = getattr(config, "layer_scale", None) is not None
        self.gamma1 = nn.Parameter(torch.ones(dim)) if scale else None
        self.gamma2 = nn.Parameter(torch.ones(dim)) if scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attn(self.norm1(x))
        x = x + (y if self.gamma1 is None else self.gamma1 * y)
        y = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + (y if self.gamma2 is None else self.gamma2 * y)


class Downsample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Level(nn.Module):
    """The level's map after and before downsampling; `downsample` makes what does that."""

    def __init__(
        self, config: Any, i: int, how: str, downsample: Callable[[int], nn.Module], rank: int = 2
    ) -> None:
        super().__init__()
        dim = config.embed_dim * 2**i
        dilations: Sequence[int] = (config.dilations or [[1] * d for d in config.depths])[i]
        self.blocks = nn.ModuleList(Layer(dim, config, i, d, how, rank) for d in dilations)
        self.downsample = downsample(dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x), x


class PatchEmbed(nn.Module):
    def __init__(self, config: NATConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.proj = nn.Sequential(
            nn.Conv2d(config.in_chans, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Body(nn.Module):
    """What a NAT has below its classifier, for maps no smaller than their windows."""

    def __init__(self, config: NATConfig, how: str) -> None:
        super().__init__()
        last = len(config.depths) - 1
        self.patch_embed = PatchEmbed(config)
        self.levels = nn.ModuleList(
            Level(config, i, how, Downsample if i < last else lambda _: nn.Identity())
            for i in range(last + 1)
        )

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Each level's, before it is downsampled: `[B, 3, H, W] -> [B, H/4, W/4, C], ...`."""
        x, maps = self.patch_embed(x), []
        for level in self.levels:
            x, full = level(x)
            maps.append(full)
        return maps


class TorchNAT(Body):
    """NAT or DiNAT: `[B, 3, H, W] -> [B, classes]`."""

    def __init__(self, config: NATConfig, how: str = "dense") -> None:
        super().__init__(config, how)
        features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.maps(x)[-1]).mean((1, 2)))

"""NAT in PyTorch, the peer of `scripts/benchmark_models.py` and `scripts/gpu_models.py`.

Attention is `scaled_dot_product_attention` with the neighborhood and its bias as one dense mask
per layer, for inference built once: the fastest of what torch has on a CPU for maps of these sizes
(no release of NATTEN runs these models on a current torch). Or it is compiled `flex_attention`.
Parameter names are upstream's: a state dict of ours, back in torch's layout, loads strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from natten_zoo.models import NATConfig
from natten_zoo.ops import Neighborhood


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kernel_size: int, dilation: int, how: str) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.hood = Neighborhood.of(2, kernel_size, dilation=dilation)
        self.rpb = nn.Parameter(torch.zeros(heads, *self.hood.bias_shape))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.places: dict[tuple[int, ...], Any] = {}
        self.masks: dict[tuple[int, ...], Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, H, W, C]
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.how == "flex":
            x = self.flex(*qkv, (h, w))
        else:
            x = F.scaled_dot_product_attention(
                *qkv, attn_mask=self.mask((h, w))
            )  # [B, heads, HW, D]
        return self.proj(x.transpose(1, 2).reshape(b, h, w, c))

    def mask(self, size: tuple[int, ...]) -> torch.Tensor:
        """`[heads, HW, HW]`: the bias where a query sees a key, -inf elsewhere."""
        if self.training or size not in self.masks:
            entry, hidden = self.place(size)
            # Not [:, entry], whose gradient is sorted: it takes ten times as long.
            bias = self.rpb.flatten(1).index_select(1, entry.flatten()).unflatten(1, entry.shape)
            bias = bias.masked_fill(hidden, -math.inf)
            if self.training:
                return bias
            self.masks[size] = bias.detach()
        return self.masks[size]

    def place(self, size: tuple[int, ...]) -> Any:
        """Of each query and key the entry of the bias, and whether it is hidden; built once."""
        if size not in self.places:
            seen, index = np.ones((1, 1), bool), np.zeros((1, 1), int)
            for axis, n in enumerate(size):
                step = np.arange(n) - np.arange(n)[:, None]
                k, d = self.hood.kernel_size[axis], self.hood.dilation[axis]
                place = np.clip(step // d + k - 1, 0, 2 * k - 2)
                one = np.ones_like(place)
                index = np.kron(index, one) * (2 * k - 1) + np.kron(np.ones_like(index), place)
                seen = np.kron(seen, self.hood.mask(axis, n))
            arrays = (torch.from_numpy(x).to(self.rpb.device) for x in (index, ~seen))
            self.places[size] = tuple(arrays)
        return self.places[size]

    def flex(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """The same by flex_attention: blocks that no query sees are left out."""
        from torch.nn.attention.flex_attention import create_block_mask

        (height, width), rpb = size, self.rpb
        (window, _), (dilation, _) = self.hood.kernel_size, self.hood.dilation

        def inside(at: torch.Tensor, key: torch.Tensor, length: int) -> torch.Tensor:
            group, ordinal = at % dilation, at // dilation
            count = (length - group + dilation - 1) // dilation
            start = (ordinal - window // 2).clamp(min=0).minimum(count - window)
            place = key // dilation - start
            return (key % dilation == group) & (place >= 0) & (place < window)

        def mask(b: Any, h: Any, query: Any, key: Any) -> Any:
            rows = inside(query // width, key // width, height)
            return rows & inside(query % width, key % width, width)

        def bias(score: Any, b: Any, h: Any, query: Any, key: Any) -> Any:
            down = (key // width - query // width) // dilation + window - 1
            right = (key % width - query % width) // dilation + window - 1
            most = 2 * window - 2
            return score + rpb[h, down.clamp(0, most), right.clamp(0, most)]

        if size not in self.masks:
            tokens = height * width
            self.masks[size] = create_block_mask(mask, None, None, tokens, tokens, q.device)
        return flex_attention()(q, k, v, score_mod=bias, block_mask=self.masks[size])


@cache
def flex_attention() -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention, dynamic=False)


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, config: NATConfig, dilation: int, how: str) -> None:
        super().__init__()
        hidden = int(dim * config.mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, config.kernel_size, dilation, how)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        scale = config.layer_scale is not None
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
    def __init__(self, config: NATConfig, i: int, how: str) -> None:
        super().__init__()
        dim, heads = config.embed_dim * 2**i, config.num_heads[i]
        dilations: Sequence[int] = (config.dilations or [[1] * d for d in config.depths])[i]
        self.blocks = nn.ModuleList(Layer(dim, heads, config, d, how) for d in dilations)
        self.downsample = Downsample(dim) if i + 1 < len(config.depths) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


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


class TorchNAT(nn.Module):
    """NAT or DiNAT: `[B, 3, H, W] -> [B, classes]`, for maps no smaller than their windows."""

    def __init__(self, config: NATConfig, how: str = "dense") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.levels = nn.ModuleList(Level(config, i, how) for i in range(len(config.depths)))
        features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        for level in self.levels:
            x = level(x)
        return self.head(self.norm(x).mean((1, 2)))

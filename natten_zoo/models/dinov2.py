"""DINOv2's vision transformers: features of images, for NAF to bring to any resolution.

Oquab et al., DINOv2, https://arxiv.org/abs/2304.07193, and Darcet et al., Vision Transformers Need
Registers, https://arxiv.org/abs/2309.16588. Computed as transformers does (`Dinov2Model`,
`Dinov2WithRegistersModel`, Apache-2.0); weights by Meta's names or by Hugging Face's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.core.fast import scaled_dot_product_attention

from ..layers.convolution import Conv2d
from ..layers.mlp import MLP
from ..layers.norm import LayerNorm
from ..layers.resize import cubic_matrix
from .base import Config, Model, rename, to_mlx_layout

EPS = 1e-6
# Names of Hugging Face's, and Meta's, which are ours.
_RULES = (
    (r"^(dinov2|dinov2_with_registers|backbone)\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# Hugging Face's `config.json`, and ours.
_ARGUMENTS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "image_size": "img_size",
    "num_channels": "in_chans",
    "mlp_ratio": "mlp_ratio",
    "num_register_tokens": "num_registers",
}
# What is computed in one way only.
_ONLY = {
    "hidden_act": "gelu",
    "layer_norm_eps": EPS,
    "use_swiglu_ffn": False,
    "qkv_bias": True,
}


@dataclass(frozen=True)
class DINOv2Config(Config):
    """Configuration of a DINOv2 backbone: ViT-S/14 by default.

    Args:
        embed_dim: Channels.
        depth: Blocks.
        num_heads: Attention heads; must divide `embed_dim`.
        patch_size: Side of a patch in pixels.
        img_size: Side of the images, in pixels, that the table of positions is for.
        mlp_ratio: Width of the feed-forward part relative to `embed_dim`.
        num_registers: Tokens that stand for nothing. Models with some of them have their table of
            positions resized with antialiasing, those without do not, as they were published.
        in_chans: Channels of the image.

    Raises:
        ValueError: Numbers do not go together.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 14
    img_size: int = 518
    mlp_ratio: float = 4.0
    num_registers: int = 0
    in_chans: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num_heads", 1), ("num_registers", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(
                    f"[DINOv2Config] '{name}' must be an integer from {least} but got {value!r}."
                )
        for name, divisor in (("embed_dim", "num_heads"), ("img_size", "patch_size")):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"[DINOv2Config] '{name}' must be divisible by '{divisor}' but got "
                    f"{getattr(self, name)} and {getattr(self, divisor)}."
                )

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> DINOv2Config:
        """Read the `config.json` of transformers' `dinov2` or `dinov2_with_registers`.

        Raises:
            ValueError: It asks for what is not computed here.
        """
        for name, value in _ONLY.items():
            if config.get(name, value) != value:
                raise ValueError(f"'{name}' must be {value!r} but got {config[name]!r}")
        values = {ours: config[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in config}
        if config.get("model_type") == "dinov2_with_registers":
            values.setdefault("num_registers", 4)
        return cls.from_dict(values)


class _Attention(nn.Module):
    """Full attention of all tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.num_heads = num_heads

    def __call__(self, x: mx.array) -> mx.array:
        qkv = mx.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))  # [B, N, 3, heads, d]
        query, key, value = (part.squeeze(2).swapaxes(1, 2) for part in mx.split(qkv, 3, axis=2))
        scale = float(query.shape[-1]) ** -0.5
        out = scaled_dot_product_attention(query, key, value, scale=scale)
        return self.proj(out.swapaxes(1, 2).flatten(-2))

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call with this output, the projections' left out."""
        return 2 * output.size * output.shape[1]


class _Gain(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = mx.ones(dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.gamma * x


class _Block(nn.Module):
    """Attention and feed-forward, each normed before, scaled, and added to its input."""

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1, self.norm2 = (LayerNorm(dim, eps=EPS) for _ in range(2))
        self.attn = _Attention(dim, config.num_heads)
        self.ls1, self.ls2 = _Gain(dim), _Gain(dim)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio))

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = Conv2d(config.in_chans, config.embed_dim, size, stride=size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj(x)


class DINOv2(Model):
    """Backbone: a vision transformer that was trained without labels.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]`, normalized as ImageNet's are; sides of one
          patch or more. What is left over at the right and the bottom is not seen.
        - Output: `[batch, height // patch_size, width // patch_size, embed_dim]`, the patches
          after the last norm.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import DINOv2, DINOv2Config
        >>> model = DINOv2(DINOv2Config(embed_dim=32, depth=2, num_heads=2)).eval()
        >>> model(mx.zeros((1, 60, 84, 3))).shape
        (1, 4, 6, 32)
    """

    Config = DINOv2Config
    TASK = "image-backbone"

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__(config)
        dim, cells = config.embed_dim, (config.img_size // config.patch_size) ** 2
        self.cls_token = mx.zeros((1, 1, dim))
        self.pos_embed = mx.random.normal((1, 1 + cells, dim), scale=0.02)
        if config.num_registers:
            self.register_tokens = mx.zeros((1, config.num_registers, dim))
        self.patch_embed = _Patches(config)
        self.blocks = [_Block(config) for _ in range(config.depth)]
        self.norm = LayerNorm(dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self._patches(self.norm(self.tokens(x)), x)

    def features(self, x: mx.array) -> list[mx.array]:
        """The patches after each block, `[batch, rows, columns, embed_dim]`, before any norm."""
        self.check_input(x)
        tokens, maps = self.embedded(x), []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(self._patches(tokens, x))
        return maps

    def tokens(self, x: mx.array) -> mx.array:
        """All tokens after the last block: `[CLS]`, registers, patches row by row."""
        self.check_input(x)
        tokens = self.embedded(x)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def embedded(self, x: mx.array) -> mx.array:
        """The tokens of an image with their positions, which registers have none of."""
        patches = self.patch_embed(x.astype(self.patch_embed.proj.weight.dtype))
        positions = self.positions(patches.shape[1:3])
        patches = patches.flatten(1, 2) + positions
        first = mx.repeat(self.cls_token + self.pos_embed[:, :1], len(x), axis=0)
        parts = [first]
        if self.config.num_registers:
            parts.append(mx.repeat(self.register_tokens, len(x), axis=0))
        return mx.concatenate([*parts, patches], axis=1)

    def positions(self, size: Sequence[int]) -> mx.array:
        """`[1, rows * columns, embed_dim]`: the table of positions, resized to a grid."""
        side = self.config.img_size // self.config.patch_size
        table = self.pos_embed[:, 1:]
        if tuple(size) == (side, side):
            return table
        grid = mx.unflatten(table[0].astype(mx.float32), 0, (side, side)).flatten(1)
        antialias = self.config.num_registers > 0
        rows, columns = (
            mx.array(cubic_matrix(side, new, antialias=antialias).astype(np.float32))
            for new in size
        )
        grid = mx.unflatten(rows @ grid, 1, (side, -1))  # [rows, side, C]
        return (columns @ grid).flatten(0, 1)[None].astype(table.dtype)

    def check_input(self, x: Any) -> None:
        """Refuse images of other channels, or smaller than a patch."""
        super().check_input(x)
        patch = self.config.patch_size
        if min(x.shape[1:3]) < patch:
            raise ValueError(
                f"[DINOv2] 'x' must have sides of at least {patch} pixels but got {x.shape[1:3]}."
            )

    def _patches(self, tokens: mx.array, x: mx.array) -> mx.array:
        rows = x.shape[1] // self.config.patch_size
        return mx.unflatten(tokens[:, 1 + self.config.num_registers :], 1, (rows, -1))

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn Meta's or Hugging Face's weights into ours; the token of masks is left out."""
        renamed = {rename(name, _RULES): to_mlx_layout(value) for name, value in weights.items()}
        renamed.pop("mask_token", None)
        for name in [name for name in renamed if ".attention.attention.query." in name]:
            parts = [
                renamed.pop(name.replace(".query.", f".{part}."))
                for part in ("query", "key", "value")
            ]
            own = re.sub(r"\.attention\.attention\.query\.", ".attn.qkv.", name)
            renamed[own] = mx.concatenate(parts)
        return renamed

"""Cutting an image into patches."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .convolution import Conv2d
from .norm import LayerNorm
from .padding import pad_to_multiple
from .transformer_layer import EPS


class PatchEmbed(nn.Module):
    """Projects patches that do not overlap, then norms them.

    Args:
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels of a token.

    Shape:
        - Input: `[batch, height, width, in_chans]`; the bottom and right are zero-padded to
          a multiple of `patch_size`.
        - Output: `[batch, ceil(height / patch_size), ceil(width / patch_size), embed_dim]`.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.norm = LayerNorm(embed_dim, eps=EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.proj(pad_to_multiple(x, self.patch_size)))

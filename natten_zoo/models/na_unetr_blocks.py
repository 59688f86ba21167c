"""The steps of a Swin UNETR that are not attention: down by merging corners, up by convolutions."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS

# Which corners of each 2x2x2 cube are merged, in this order. MONAI up to 1.4 took two of them twice
# and never looked at two others; the weights published until then were trained like that.
CORNERS = {
    "all": "000 100 010 001 110 101 011 111",
    "published": "000 100 010 001 101 010 001 111",
}


# Convolutions on a CPU unfold their input, 27 times its size; of this many numbers at most.
_UNFOLDED = 2**26


class PatchMerging(nn.Module):
    """The corners of each cube as one token: `[B, D, H, W, C] -> [B, D/2, H/2, W/2, 2 C]`."""

    def __init__(self, dim: int, merging: str = "all") -> None:
        super().__init__()
        self.corners = [tuple(map(int, corner)) for corner in CORNERS[merging].split()]
        self.norm = LayerNorm(8 * dim, eps=EPS)
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        parts = [x[:, i::2, j::2, k::2] for i, j, k in self.corners]
        return self.reduction(self.norm(mx.concatenate(parts, axis=-1)))


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3x3 voxels with instance norms, and a way around them.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        # Padded in depth by `_convolve`.
        padding = (0, 1, 1)
        self.conv1 = nn.Conv3d(in_dim, dim, 3, padding=padding, bias=False)
        self.conv2 = nn.Conv3d(dim, dim, 3, padding=padding, bias=False)
        if in_dim != dim:
            self.conv3 = nn.Linear(in_dim, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        y = nn.leaky_relu(_instance_norm(_convolve(self.conv1, x)))
        y = _instance_norm(_convolve(self.conv2, y))
        return nn.leaky_relu(y + (_instance_norm(self.conv3(x)) if "conv3" in self else x))


def _instance_norm(x: mx.array) -> mx.array:
    """Each channel of each sample with mean 0 and variance 1, computed in float32."""
    y = x.astype(mx.float32)
    y = y - y.mean(axis=(1, 2, 3), keepdims=True)
    variance = mx.square(y).mean(axis=(1, 2, 3), keepdims=True)
    return (y * mx.rsqrt(variance + EPS)).astype(x.dtype)


def _convolve(conv: nn.Conv3d, x: mx.array) -> mx.array:
    """A 3x3x3 convolution at the same size, in slabs of depth that bound the memory."""
    depth = x.shape[1]
    rows = max(1, _UNFOLDED // (27 * max(1, x[:, :1].size)))
    x = mx.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
    slabs = [conv(x[:, i : min(i + rows, depth) + 2]) for i in range(0, depth, rows)]
    return slabs[0] if len(slabs) == 1 else mx.concatenate(slabs, axis=1)


class UpBlock(nn.Module):
    """Twice the size, beside what was there on the way down: a step up the decoder.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the skip connection and the output.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        # A transposed convolution whose steps are its size: each token becomes 2x2x2.
        self.up = nn.Linear(in_dim, 8 * dim, bias=False)
        self.block = ResidualBlock(2 * dim, dim)

    def __call__(self, x: mx.array, skip: mx.array) -> mx.array:
        x = mx.unflatten(self.up(x), -1, (2, 2, 2, -1))  # [B, D, H, W, 2, 2, 2, C]
        x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(skip.shape)  # [B, 2D, 2H, 2W, C]
        return self.block(mx.concatenate([x, skip], axis=-1))

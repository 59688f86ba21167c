"""The layers of an HDiT: conditioned norms, cosine-similarity attention, tokens that merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.activation import gelu
from ..layers.windows import window_attention
from ..ops.functional import na2d

EPS = 1e-6
# The kinds of attention that a level may have; of "none" only the feed-forward parts are there.
KINDS = ("neighborhood", "global", "shifted-window", "none")


class FourierFeatures(nn.Module):
    r"""Cosines and sines of random projections: `[B, in] -> [B, out]`.

    The projections are drawn once, are saved and never learn. They are computed in float32, and
    drawn so that half precision holds them exactly.
    """

    weight: mx.array

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        drawn = mx.random.normal((out_dims // 2, in_dims))
        self.weight = drawn.astype(mx.bfloat16).astype(mx.float32)
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        angles = 2 * math.pi * x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class RMSNorm(nn.Module):
    """Root mean square norm with a learned scale, in float32 whatever the dtype."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.scale = mx.ones(dims)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, EPS) * self.scale


class AdaRMSNorm(nn.Module):
    """The same with a scale for each sample, which a linear layer makes of its conditioning."""

    def __init__(self, dims: int, cond_dims: int) -> None:
        super().__init__()
        self.linear = zero_linear(cond_dims, dims)

    def __call__(self, x: mx.array, cond: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, EPS) * (self.linear(cond) + 1)[:, None, None]


def zero_linear(in_dims: int, out_dims: int) -> nn.Linear:
    """A linear layer without a bias that begins as zero: its branch is not there at first."""
    layer = nn.Linear(in_dims, out_dims, bias=False)
    layer.weight = mx.zeros_like(layer.weight)
    return layer


def geglu(x: mx.array) -> mx.array:
    """The first half of the channels times the GELU of the second."""
    value, gate = mx.split(x, 2, axis=-1)
    return value * gelu(gate)


class Attention(nn.Module):
    """Cosine-similarity attention with a learned scale per head, on rotated queries and keys.

    Args:
        dims: Channels.
        head_dim: Channels of a head, a multiple of 8 that divides `dims`.
        cond_dims: Channels of the conditioning.
        kind: `"neighborhood"`, `"global"` or `"shifted-window"`.
        size: Side of the neighborhood or window.
        shift: Of the windows.
        drop_rate: Dropout rate of the heads' outputs.

    Shape:
        - Input and output: `[batch, height, width, dims]`; conditioning `[batch, cond_dims]`.
    """

    def __init__(
        self,
        dims: int,
        head_dim: int,
        cond_dims: int,
        kind: str,
        size: int,
        shift: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.head_dim, self.kind, self.size, self.shift = head_dim, kind, size, shift
        self.norm = AdaRMSNorm(dims, cond_dims)
        self.qkv_proj = nn.Linear(dims, 3 * dims, bias=False)
        self.scale = mx.full(dims // head_dim, 10.0)
        self.dropout = nn.Dropout(drop_rate)
        self.out_proj = zero_linear(dims, dims)

    def __call__(self, x: mx.array, cond: mx.array) -> mx.array:
        qkv = mx.unflatten(self.qkv_proj(self.norm(x, cond)), -1, (3, -1, self.head_dim))
        query, key, value = (qkv[..., i, :, :] for i in range(3))  # [B, H, W, heads, e]
        angles = rotary_angles(*x.shape[1:3], *query.shape[-2:])
        query, key = (rotate(self._scaled(part), angles) for part in (query, key))
        return self.out_proj(self.dropout(self._attend(query, key, value).flatten(-2)))

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call with this output, the projections' left out."""
        seen = self.size**2 if self.kind != "global" else output.shape[1] * output.shape[2]
        return 2 * output.size * seen

    def _scaled(self, x: mx.array) -> mx.array:
        """To a length of the root of the scale, so that a product is scale times cosine."""
        squares = x.astype(mx.float32).square().sum(-1, keepdims=True)
        factor = mx.sqrt(self.scale.astype(mx.float32))[:, None] * mx.rsqrt(squares + EPS)
        return x * factor.astype(x.dtype)

    def _attend(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        if self.kind == "neighborhood":
            return cast(mx.array, na2d(query, key, value, self.size, scale=1.0))
        if self.kind == "shifted-window":
            return window_attention(query, key, value, self.size, self.shift, scale=1.0)
        parts = (x.flatten(1, 2).swapaxes(1, 2) for x in (query, key, value))  # [B, heads, N, e]
        out = mx.fast.scaled_dot_product_attention(*parts, scale=1.0)
        return out.swapaxes(1, 2).reshape(query.shape)


class FeedForward(nn.Module):
    """A gated feed-forward part: `[..., dims]` to itself."""

    def __init__(self, norm: nn.Module, dims: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.norm = norm
        self.up_proj = nn.Linear(dims, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(drop_rate)
        self.down_proj = zero_linear(hidden, dims)

    def __call__(self, x: mx.array, *cond: mx.array) -> mx.array:
        return self.down_proj(self.dropout(geglu(self.up_proj(self.norm(x, *cond)))))


class Layer(nn.Module):
    """Attention, if the level has any, then the feed-forward part."""

    def __init__(self, self_attn: Attention | None, ff: FeedForward) -> None:
        super().__init__()
        if self_attn is not None:
            self.self_attn = self_attn
        self.ff = ff

    def __call__(self, x: mx.array, cond: mx.array) -> mx.array:
        if "self_attn" in self:
            x = x + self.self_attn(x, cond)
        return x + self.ff(x, cond)


class Mapping(nn.Module):
    """The mapping network: from the sum of all conditioning to what the norms are scaled by."""

    def __init__(self, depth: int, dims: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.in_norm = RMSNorm(dims)
        self.blocks = [FeedForward(RMSNorm(dims), dims, hidden, drop_rate) for _ in range(depth)]
        self.out_norm = RMSNorm(dims)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.in_norm(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out_norm(x)


class Merge(nn.Module):
    """Each patch of tokens, or of pixels, to one token."""

    def __init__(self, in_dims: int, out_dims: int, patch: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.proj = nn.Linear(in_dims * math.prod(patch), out_dims, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        (batch, height, width, dims), (rows, columns) = x.shape, self.patch
        x = x.reshape(batch, height // rows, rows, width // columns, columns, dims)
        return self.proj(x.swapaxes(2, 3).flatten(3))


class Split(nn.Module):
    """Each token to a patch of them; with `skip` these are mixed with the ones of the way down.

    The mix is `skip + fac * (x - skip)` with a learned factor that begins as one half.
    """

    def __init__(
        self, in_dims: int, out_dims: int, patch: Sequence[int] = (2, 2), *, mixes: bool = True
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.proj = nn.Linear(in_dims, out_dims * math.prod(patch), bias=False)
        if mixes:
            self.fac = mx.full(1, 0.5)

    def __call__(self, x: mx.array, skip: mx.array | None = None) -> mx.array:
        (batch, height, width, _), (rows, columns) = x.shape, self.patch
        x = self.proj(x).reshape(batch, height, width, rows, columns, -1).swapaxes(2, 3)
        x = x.reshape(batch, height * rows, width * columns, -1)
        return x if skip is None else skip + self.fac * (x - skip)


def rotate(x: mx.array, angles: tuple[mx.array, mx.array]) -> mx.array:
    """Turn the first half of each head's channels, in pairs of its first and second quarter."""
    cos, sin = (part.astype(x.dtype) for part in angles)
    quarter = x.shape[-1] // 4
    first, second, rest = mx.split(x, [quarter, 2 * quarter], axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


@lru_cache(maxsize=64)
def rotary_angles(height: int, width: int, heads: int, head_dim: int) -> tuple[mx.array, mx.array]:
    r"""Cosines and sines of the axial rotary embedding, `[height, width, heads, head_dim / 4]`.

    The frequencies go from $\pi$ up to $10 \pi$ over all heads; one half of the angles is theirs
    times a token's row, the other times its column. Rows and columns are the centers of cells that
    fill -1..1 on the longer axis and as much of it on the other as the map is narrower.
    """
    eighth = head_dim // 8
    steps = np.linspace(math.log(math.pi), math.log(10 * math.pi), heads * eighth + 1)[:-1]
    frequencies = np.exp(steps).reshape(eighth, heads).T  # [heads, e / 8]
    longer = max(height, width)
    rows, columns = ((2 * np.arange(n) + 1 - n) / longer for n in (height, width))
    shape = (height, width, heads, eighth)
    parts = (
        np.broadcast_to(at[..., None, None] * frequencies, shape)
        for at in (rows[:, None], columns[None])
    )
    angles = np.concatenate([*parts], axis=-1)
    return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))

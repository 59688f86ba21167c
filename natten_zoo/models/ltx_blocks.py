"""The layers of LTX-2.5's video decoder; see [`natten_zoo.models.ltx_decoder`][]."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers.mlp import SwiGLU
from ..layers.rotary import axial_split, grid_places, rotate_at
from ..ops.functional import attend
from ..ops.neighborhood import Neighborhood
from .clip import WHOLE, Clip, Cut

EPS = 1e-6
# Channels of the sinusoid that a time becomes.
TIME_CHANNELS = 256
# Rows of a diffusion block's modulation. The third, sixth and seventh were gates in training.
CHUNKS = 7
# A scale, less 1, and a shift.
Modulation = tuple[mx.array, mx.array]
# A function of single tokens, `[tokens, channels]` each.
PerToken = Callable[[mx.array], mx.array]


class RotaryAttention(nn.Module):
    """3-D neighborhood attention with normed, rotated queries and keys.

    Args:
        dim: Channels.
        head_dim: Channels of a head; must divide `dim`.
        kernel_size: The window, in frames, rows and columns.
    """

    def __init__(self, dim: int, head_dim: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.RMSNorm(head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(head_dim, eps=EPS)
        self.proj = nn.Linear(dim, dim)
        self.head_dim, self.num_heads = head_dim, dim // head_dim
        self.split = axial_split(head_dim)
        self.neighborhood = Neighborhood.of(3, kernel_size, op="RotaryAttention")

    def __call__(
        self,
        x: mx.array,
        prepare: PerToken = lambda tokens: tokens,
        kept: slice = slice(None),
        cut: Cut = WHOLE,
    ) -> mx.array:
        """What the heads see, before `proj`, which goes with what follows.

        Args:
            x: `[B, T, H, W, C]`.
            prepare: What is made of each token first.
            kept: The frames that are asked for; those around them are only seen.
            cut: How much is done at once.

        Returns:
            `[B, kept, H, W, C]`.
        """
        heads = self.num_heads // cut.groups
        parts = []
        for first in range(0, self.num_heads, heads):
            parts.append(self._of_heads(x, prepare, slice(first, first + heads), cut)[:, kept])
            cut.settle(parts[-1])
        return mx.concatenate(parts, axis=-2).flatten(-2)

    def _of_heads(self, x: mx.array, prepare: PerToken, heads: slice, cut: Cut) -> mx.array:
        arrays = []
        index = mx.arange(math.prod(x.shape[:-1])).reshape(*x.shape[:-1], 1)

        def made(
            layer: Any, norm: nn.RMSNorm | None, tokens: mx.array, index: mx.array
        ) -> mx.array:
            array = mx.unflatten(layer(prepare(tokens)), -1, (-1, self.head_dim))
            if norm is not None:  # of some tokens at a time, for it takes several times their size
                places = grid_places(index[..., 0], x.shape[1:4])
                array = rotate_at(norm(array), places, self.split)
            return array.flatten(-2)

        for part, norm in enumerate((self.q_norm, self.k_norm, None)):
            of_part = partial(made, self._rows(part, heads), norm)
            array = cut.in_chunks(of_part, x, index)
            arrays.append(mx.unflatten(array, -1, (-1, self.head_dim)))
            cut.settle(arrays[-1])
        return cast(mx.array, attend(self.neighborhood, *arrays, op="na3d", return_lse=False))

    def _rows(self, part: int, heads: slice) -> Any:
        """The linear layer of some heads' queries, keys or values: rows of `qkv`."""
        layer: Any = copy.copy(self.qkv)
        for name, rows in layer.items():  # scales and offsets, too, if it is quantized
            rows = rows.reshape(3, self.num_heads, self.head_dim, *rows.shape[1:])
            layer[name] = rows[part, heads].flatten(0, 1)
        return layer

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call with this output, the projections' left out."""
        return 2 * output.size * self.neighborhood.volume


class Block(nn.Module):
    """Attention, then SwiGLU, each of a norm of the tokens and added to them."""

    def __init__(self, dim: int, head_dim: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=EPS)
        self.attn = RotaryAttention(dim, head_dim, kernel_size)
        self.norm2 = nn.RMSNorm(dim, eps=EPS)
        self.mlp = SwiGLU(dim, math.ceil(4 * dim / 16) * 16)

    def __call__(self, clip: Clip, cut: Cut = WHOLE) -> Clip:
        """The clip with what the block adds; the one that is given is used up."""
        return self.advance(clip, cut)

    def advance(
        self,
        clip: Clip,
        cut: Cut,
        attention: Modulation | None = None,
        feed_forward: Modulation | None = None,
    ) -> Clip:
        """Slab by slab; the frames around one that it sees are those before this block."""

        def prepare(tokens: mx.array) -> mx.array:
            return modulated(self.norm1(tokens), attention)

        def finish(tokens: mx.array, seen: mx.array) -> mx.array:
            tokens = tokens + self.attn.proj(seen)
            return tokens + self.mlp(modulated(self.norm2(tokens), feed_forward))

        hood, frames, done = self.attn.neighborhood, clip.frames, []
        for start, stop in clip.spans():
            first = int(hood.window(0, start, frames)[0])
            last = int(sum(hood.window(0, stop - 1, frames)))
            kept = slice(start - first, stop - first)
            seen = self.attn(clip.between(first, last), prepare, kept, cut)
            cut.settle(seen)
            done.append(cut.in_chunks(finish, clip.between(start, stop), seen))
            cut.settle(done[-1])
            del seen  # not to be held while the next slab is computed
            if cut.done is not None:
                cut.done(math.prod(done[-1].shape[:-1]))
            clip.release(int(hood.window(0, stop, frames)[0]) if stop < frames else frames)
        return Clip(done)


class DiffusionBlock(Block):
    """A block that is told of the context at each token, and of the time by scales and shifts."""

    def __init__(self, dim: int, head_dim: int, kernel_size: Sequence[int]) -> None:
        super().__init__(dim, head_dim, kernel_size)
        self.context_proj = nn.Linear(dim, dim)
        self.scale_shift_table = mx.zeros((CHUNKS, dim))

    def __call__(  # type: ignore[override]
        self, clip: Clip, context: Clip, modulation: mx.array, cut: Cut = WHOLE
    ) -> Clip:
        """The clip with what the block adds.

        Args:
            clip: The tokens; they are used up.
            context: What the latents say of each token, in the same slabs.
            modulation: `[1, 7 * channels]`, of the time.
            cut: How much is done at once.
        """
        rows = mx.unflatten(modulation[0], -1, (CHUNKS, -1)) + self.scale_shift_table  # [7, C]

        def told(x: mx.array, context: mx.array) -> mx.array:
            return x + self.context_proj(context)

        clip = clip.each(lambda *slabs: cut.in_chunks(told, *slabs), cut, context)
        return self.advance(clip, cut, (rows[0], rows[1]), (rows[3], rows[4]))


def modulated(x: mx.array, modulation: Modulation | None) -> mx.array:
    """Tokens scaled and shifted."""
    return x if modulation is None else x * (1 + modulation[0]) + modulation[1]


class Upsample(nn.Module):
    """Each token becomes `stride` ones, by a linear layer.

    Args:
        dim: Channels.
        stride: Per axis.
        reduction: What the channels are divided by.
    """

    def __init__(self, dim: int, stride: Sequence[int], reduction: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim * math.prod(stride) // reduction)
        self.stride = tuple(stride)

    def __call__(self, clip: Clip, cut: Cut = WHOLE, *, first: bool = True) -> Clip:
        """The larger clip; the one that is given is used up.

        Args:
            clip: The tokens.
            cut: How much is done at once.
            first: Whether it begins with the video: then, of two frames that the first becomes,
                the earlier one is a duplicate and left out.
        """
        extra = first and self.stride[0] == 2
        done: list[mx.array] = []
        for slab in clip.take():
            done.append(self._shuffled(self.proj(slab))[:, int(extra and not done) :])
            cut.settle(done[-1])
        return Clip(done)

    def _shuffled(self, x: mx.array) -> mx.array:
        batch, frames, height, width, _ = x.shape
        st, sh, sw = self.stride
        x = mx.unflatten(x, -1, (-1, st, sh, sw))  # [B, T, H, W, C, st, sh, sw]
        x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, frames * st, height * sh, width * sw, -1)


class TimeEmbedder(nn.Module):
    """A time in 0..1 as a vector: cosines and sines, then two linear layers."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.mlp = [nn.Linear(TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim)]
        self.scale = scale

    def __call__(self, time: float) -> mx.array:
        """`[1, dim]`, the same for all samples of a batch."""
        half = TIME_CHANNELS // 2
        # The angles go up to 1000, so the last bit of an exponent is seen: it is rounded as the
        # reference rounds it, to float32, and nothing else is.
        exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / half
        turns = np.exp(exponents.astype(np.float64)).astype(np.float32)
        angles = np.float64(np.float32(time * self.scale) * turns)
        x = mx.array(np.concatenate([np.cos(angles), np.sin(angles)])[None], self.mlp[0].bias.dtype)
        for layer in self.mlp:
            x = layer(x)
        return x


class Modulator(nn.Module):
    """The scales and shifts of all blocks, of the vector of a time."""

    def __init__(self, time_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(time_dim, CHUNKS * dim)

    def __call__(self, time: mx.array) -> mx.array:
        """`[1, time_dim]` to `[1, 7 * dim]`."""
        return self.proj(nn.silu(time))


def patchify(x: mx.array, size: int) -> mx.array:
    """Squares of pixels as channels: `[B, T, H, W, C]` to `[B, T, H / p, W / p, C * p * p]`.

    Of the new channels the old one is slowest, then comes the column in the square, then the row.
    """
    batch, frames, height, width, _ = x.shape
    x = x.reshape(batch, frames, height // size, size, width // size, size, -1)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).flatten(-3)


def unpatchify(x: mx.array, size: int) -> mx.array:
    """The inverse of [`patchify`][].

    Examples:
        >>> x = mx.random.normal((1, 2, 4, 6, 3))
        >>> mx.array_equal(unpatchify(patchify(x, 2), 2), x).item()
        True
    """
    batch, frames, height, width, _ = x.shape
    x = mx.unflatten(x, -1, (-1, size, size)).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(batch, frames, height * size, width * size, -1)

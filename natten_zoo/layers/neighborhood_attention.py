"""Neighborhood attention as a layer: one implementation of any rank, a subclass for each."""

from __future__ import annotations

import numbers
import warnings
from typing import Any, ClassVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.functional import attend
from ..ops.neighborhood import BoolOrBools, IntOrInts, Neighborhood, TooSmallError
from ..ops.packed import attend_packed
from ..ops.problem import checked_scale, inside_samples, split_heads
from ..ops.unfused import attend_av, attend_qk
from ..ops.varlen import Sizes, attend_varlen
from .padding import crop, pad_to


class NeighborhoodAttention(nn.Module):
    r"""Multi-head self-attention in which a token sees the `kernel_size` tokens around it.

    $$
    \mathrm{NA}(x)_i = \sum_{j \in \rho(i)} \mathrm{softmax}_j
    \left(s \, q_i \cdot k_j + b_{(j - i) / d}\right) v_j
    $$

    with $\rho(i)$ the window of [`natten_zoo.ops.Neighborhood`][] and $b$ the
    optional relative positional bias. Use the subclasses [`NeighborhoodAttention1D`][],
    [`NeighborhoodAttention2D`][] and [`NeighborhoodAttention3D`][]. Parameters are named as
    in NATTEN: `qkv`, `proj` and `rpb`. Source: Hassani et al., Neighborhood Attention
    Transformer, https://arxiv.org/abs/2204.07143, and NATTEN 0.14 to 0.21.

    Args:
        embed_dim: Channels of the input and the output.
        num_heads: Attention heads; must divide `embed_dim`.
        kernel_size: Window size, one number or one per axis; -1 for a whole axis, whatever its
            length.
        stride: Keep only every `stride`-th query, which shrinks the output to
            `ceil(size / stride)`. NATTEN >= 0.20 calls another thing stride: `window_stride`.
        dilation: Step between the tokens of a window, one number or one per axis.
        is_causal: Whether a token sees only itself and tokens before it, per axis.
        num_kv_heads: Heads of keys and values; must divide `num_heads`. Default: `num_heads`.
        qkv_bias: Whether the query, key and value projection has a bias.
        qk_scale: Factor of the logits. Default: `head_dim ** -0.5`.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the output.
        rel_pos_bias: Whether a learned bias per head and relative position is added to the logits.
        window_stride: Number of neighboring queries that share one window, per axis.
        pad_small_inputs: Zero-pad inputs smaller than `kernel_size * dilation` at the bottom and
            right, attend to the padding too, and crop, as NATTEN up to 0.15 did and as the
            published NAT and DiNAT weights expect. Otherwise such inputs are an error.

    Shape:
        - Input: `[batch, *spatial, embed_dim]`.
        - Lengths, optional: integers `[batch, rank]`, for one axis also `[batch]`: how much of
          each axis belongs to each sample of a padded batch. What lies outside is not seen, and is
          zero in the output. natten-mlx's names of it, `seq_lens` and `spatial_sizes`, are
          understood.
        - Output: the same as the input, each spatial axis divided by `stride` (rounded up).

    Raises:
        ValueError: Heads do not divide the channels, or sizes are out of range.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.layers import NeighborhoodAttention2D
        >>> layer = NeighborhoodAttention2D(64, num_heads=4, kernel_size=7, rel_pos_bias=True)
        >>> layer(mx.zeros((2, 28, 28, 64)), lengths=[(28, 28), (20, 17)]).shape
        (2, 28, 28, 64)
    """

    rank: ClassVar[int]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        dilation: IntOrInts = 1,
        is_causal: BoolOrBools = False,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
        *,
        window_stride: IntOrInts = 1,
        pad_small_inputs: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_heads(name, embed_dim, self.num_heads, self.num_kv_heads)
        self.head_dim = embed_dim // num_heads
        self.scale = checked_scale(name, qk_scale, self.head_dim, "qk_scale")
        self.pad_small_inputs = pad_small_inputs
        self.neighborhood = Neighborhood.of(
            self.rank,
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            window_stride=window_stride,
            op=name,
        )
        self._add_qkv(embed_dim, qkv_bias)
        if rel_pos_bias:
            # Upstream truncates this normal distribution at 2, a hundred deviations away.
            shape = (num_heads, *self.neighborhood.bias_shape)
            self.rpb = mx.random.normal(shape, scale=0.02)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.attn_drop_rate = attn_drop
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def embed_dim(self) -> int:
        """Channels of the input and the output."""
        return self.num_heads * self.head_dim

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Window size per axis."""
        return self.neighborhood.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Step between the queries that are kept, per axis."""
        return self.neighborhood.stride

    @property
    def dilation(self) -> tuple[int, ...]:
        """Step between the tokens of a window, per axis."""
        return self.neighborhood.dilation

    @property
    def is_causal(self) -> tuple[bool, ...]:
        """Whether a token sees only itself and tokens before it, per axis."""
        return self.neighborhood.is_causal

    def __call__(
        self,
        x: mx.array,
        lengths: Sizes | None = None,
        *,
        seq_lens: Sizes | None = None,
        spatial_sizes: Sizes | None = None,
    ) -> mx.array:
        lengths = _one_of(type(self).__name__, lengths, seq_lens, spatial_sizes)
        self._check_input(x)
        size = x.shape[1:-1]
        if self.pad_small_inputs:
            x = pad_to(x, self.neighborhood.minimum_size)
        try:
            x = self._attended(x, lengths)  # [B, *ceil(S / stride), heads, head_dim]
        except TooSmallError:
            if lengths is not None:
                raise
            raise ValueError(self._too_small(size)) from None
        if self.pad_small_inputs:
            x = crop(x, self.neighborhood.output_size(size))
        x = self.proj_drop(self.proj(x.flatten(-2)))
        return x if lengths is None else x * self._inside(x, lengths)

    def macs(self, output: mx.array, x: mx.array, *_: object) -> int:
        """Multiply-adds of a call with this output, the projections' left out."""
        volume = self.neighborhood.on(x.shape[1:-1]).volume
        return 2 * output.size * volume  # query x key, then weights x value

    def attend(
        self, query: mx.array, key: mx.array, value: mx.array, lengths: Sizes | None = None
    ) -> mx.array:
        """Attention alone, `[B, *S, heads, head_dim]` each, without the projections."""
        hood, drops = self.neighborhood, self._drops
        if lengths is not None:
            self._check_varlen(drops)
            out = attend_varlen(hood, query, key, value, lengths, **self._options)
            return cast(mx.array, out)
        if not drops:
            return cast(mx.array, attend(hood, query, key, value, **self._options))
        logits = attend_qk(hood, query, key, scale=self.scale, rpb=self.get("rpb"))
        weights = mx.softmax(logits, axis=-1, precise=True)
        return attend_av(hood, self.attn_drop(weights), value)

    def attend_packed(self, qkv: mx.array, lengths: Sizes | None = None) -> mx.array:
        """The same for what `project_packed` returns, whose gradient nobody has to join."""
        if self._drops:
            query, key, value = split_heads(qkv, self.num_heads)
            return self.attend(query, key, value, lengths)
        if lengths is not None:
            self._check_varlen(False)
        hood, heads = self.neighborhood, self.num_heads
        return cast(mx.array, attend_packed(hood, qkv, heads, sizes=lengths, **self._options))

    @property
    def _options(self) -> dict[str, Any]:
        return {"scale": self.scale, "rpb": self.get("rpb"), "return_lse": False}

    @property
    def _drops(self) -> bool:
        return self.training and self.attn_drop_rate > 0

    def _attended(self, x: mx.array, lengths: Sizes | None) -> mx.array:
        return self.attend_packed(self.project_packed(x), lengths)

    def _check_input(self, x: mx.array) -> None:
        channels = self.num_heads * self.head_dim
        if x.ndim != self.rank + 2 or x.shape[-1] != channels:
            raise ValueError(
                f"[{type(self).__name__}] the input must have {self.rank + 2} axes and {channels} "
                f"channels but got {x.shape}."
            )

    def _too_small(self, size: tuple[int, ...]) -> str:
        """What operators say of small maps, and the option that only a layer has."""
        return (
            f"[{type(self).__name__}] a map of {size} tokens is smaller than 'kernel_size' times "
            f"'dilation'; the smallest input that works is {self.neighborhood.minimum_size}, and "
            "with pad_small_inputs=True smaller ones are padded."
        )

    def _check_varlen(self, drops: bool) -> None:
        name = type(self).__name__
        if self.pad_small_inputs:
            raise ValueError(
                f"[{name}] 'lengths' must be None with pad_small_inputs: a sample smaller than its "
                "windows would not be padded."
            )
        if drops:
            raise ValueError(
                f"[{name}] 'attn_drop' must be 0 while training with 'lengths' but got "
                f"{self.attn_drop_rate}."
            )

    def _inside(self, x: mx.array, lengths: Sizes) -> mx.array:
        """1 on the tokens of each sample, else 0: `[B, *S, 1]` in the dtype of `x`."""
        given = lengths if isinstance(lengths, mx.array) else mx.array(np.asarray(lengths))
        ends = given.reshape(x.shape[0], self.rank)
        steps = zip(x.shape[1:-1], self.neighborhood.stride, strict=True)
        inside = inside_samples([mx.arange(n) * step for n, step in steps], ends)
        return inside[..., None].astype(x.dtype)

    def _add_qkv(self, embed_dim: int, bias: bool) -> None:
        dims = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(embed_dim, dims, bias=bias)

    def project_packed(self, x: mx.array) -> mx.array:
        """Queries, keys and values as the heads of one array, `[B, *S, heads, head_dim]`."""
        return mx.unflatten(self.qkv(x), -1, (-1, self.head_dim))

    def project_qkv(self, x: mx.array) -> list[mx.array]:
        """Queries, keys and values, `[B, *S, heads, head_dim]` each, as [`attend`][] takes."""
        return split_heads(self.project_packed(x), self.num_heads)

    def _extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, {self.neighborhood}"


class NeighborhoodAttention1D(NeighborhoodAttention):
    """[`NeighborhoodAttention`][] over sequences `[batch, length, channels]`."""

    rank = 1


class NeighborhoodAttention2D(NeighborhoodAttention):
    """[`NeighborhoodAttention`][] over feature maps `[batch, height, width, channels]`."""

    rank = 2


class NeighborhoodAttention3D(NeighborhoodAttention):
    """[`NeighborhoodAttention`][] over volumes `[batch, depth, height, width, channels]`."""

    rank = 3


def _one_of(
    op: str, lengths: Sizes | None, seq_lens: Sizes | None, spatial_sizes: Sizes | None
) -> Sizes | None:
    """The lengths, under natten-mlx's names, too, of which a hint says what they are here."""
    if seq_lens is None and spatial_sizes is None:
        return lengths
    former = {"seq_lens": seq_lens, "spatial_sizes": spatial_sizes}
    given = {name: value for name, value in former.items() if value is not None}
    if len(given) + (lengths is not None) > 1:
        raise ValueError(f"[{op}] 'lengths' must be given once but got {', '.join(given)}, too.")
    ((name, value),) = given.items()
    warnings.warn(f"[{op}] '{name}' is 'lengths' here.", DeprecationWarning, stacklevel=4)
    return value


def _check_heads(op: str, embed_dim: int, num_heads: int, num_kv_heads: int) -> None:
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, numbers.Integral):
            raise TypeError(f"[{op}] '{name}' must be an integer but got {size!r}.")
    if embed_dim < 1:
        raise ValueError(f"[{op}] 'embed_dim' must be positive but got {embed_dim}.")
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"[{op}] 'num_heads' must divide 'embed_dim' but got {num_heads} and {embed_dim}."
        )
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"[{op}] 'num_kv_heads' must divide 'num_heads' but got {num_kv_heads} and {num_heads}."
        )

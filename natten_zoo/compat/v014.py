"""NATTEN 0.14: `natten.functional`, the layers and the FLOP counter's names.

Operators are heads first, `[batch, heads, *spatial, head_dim]`, and leave scaling to the caller.
"""

from __future__ import annotations

from typing import Any, NoReturn

import mlx.core as mx

from .. import layers
from ..ops.neighborhood import IntOrInts
from .heads_first import av, check_odd, qk

__version__ = "0.14.6"

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "add_natten_handle",
    "get_flops",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
]


def natten1dqkrpb(
    query: mx.array, key: mx.array, rpb: mx.array | None, kernel_size: int, dilation: int
) -> mx.array:
    """Logits `[B, heads, L, K]` with the bias `[heads, 2K-1]`, which may be None."""
    return qk("natten1dqkrpb", 1, query, key, kernel_size, dilation, rpb=rpb)


def natten1dqk(query: mx.array, key: mx.array, kernel_size: int, dilation: int) -> mx.array:
    """Logits `[B, heads, L, K]`."""
    return qk("natten1dqk", 1, query, key, kernel_size, dilation)


def natten1dav(attn: mx.array, value: mx.array, kernel_size: int, dilation: int) -> mx.array:
    """Weighted values `[B, heads, L, head_dim]`."""
    return av("natten1dav", 1, attn, value, kernel_size, dilation)


def natten2dqkrpb(
    query: mx.array, key: mx.array, rpb: mx.array | None, kernel_size: int, dilation: int
) -> mx.array:
    """Logits `[B, heads, H, W, K*K]` with the bias `[heads, 2K-1, 2K-1]`, which may be None."""
    return qk("natten2dqkrpb", 2, query, key, kernel_size, dilation, rpb=rpb)


def natten2dqk(query: mx.array, key: mx.array, kernel_size: int, dilation: int) -> mx.array:
    """Logits `[B, heads, H, W, K*K]`."""
    return qk("natten2dqk", 2, query, key, kernel_size, dilation)


def natten2dav(attn: mx.array, value: mx.array, kernel_size: int, dilation: int) -> mx.array:
    """Weighted values `[B, heads, H, W, head_dim]`."""
    return av("natten2dav", 2, attn, value, kernel_size, dilation)


class Layer(layers.NeighborhoodAttention):
    """The layers of NATTEN 0.14: `bias` is the positional one; small inputs are padded."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: IntOrInts,
        dilation: IntOrInts = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        check_odd(type(self).__name__, self.rank, kernel_size)
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=bias,
            pad_small_inputs=True,
        )


class NeighborhoodAttention1D(Layer):
    """The 1-D layer of NATTEN 0.14."""

    rank = 1


class NeighborhoodAttention2D(Layer):
    """The 2-D layer of NATTEN 0.14."""

    rank = 2


def get_flops(model: Any, input: Any, disable_warnings: bool = False) -> NoReturn:
    """Refused: upstream counts with fvcore, which traces PyTorch modules only."""
    raise NotImplementedError(
        "[get_flops] counts PyTorch modules through fvcore; for a model of this library see "
        "`natten-zoo info` or natten_zoo.models.cost."
    )


def add_natten_handle(flop_ctr: Any) -> NoReturn:
    """Refused: there is no fvcore counter for MLX."""
    raise NotImplementedError(
        "[add_natten_handle] needs a counter of fvcore, which is for PyTorch."
    )

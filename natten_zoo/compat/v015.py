"""NATTEN 0.15: 3-D, additional keys and values, and `na*d` names beside the older ones.

Operators are heads first and unscaled. A 3-D kernel is `kernel_size_d` in depth and
`kernel_size` in height and width.
"""

from __future__ import annotations

import mlx.core as mx

from .heads_first import av, qk
from .knobs import (
    disable_gemm_na,
    disable_tf32,
    disable_tiled_na,
    enable_gemm_na,
    enable_tf32,
    enable_tiled_na,
    has_bfloat,
    has_cuda,
    has_fp32_gemm,
    has_fp64_gemm,
    has_gemm,
    has_half,
    has_tf32_gemm,
)
from .v014 import (
    Layer,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    add_natten_handle,
    get_flops,
    natten1dqkrpb,
    natten2dqkrpb,
)

__version__ = "0.15.1"

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "get_flops",
    "has_bfloat",
    "has_cuda",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]


def na1d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, L, K + additional]`."""
    return qk("na1d_qk", 1, query, key, kernel_size, dilation, additional_keys=additional_keys)


def na1d_qk_with_bias(
    query: mx.array,
    key: mx.array,
    bias: mx.array | None,
    kernel_size: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, L, K + additional]` with the bias `[heads, 2K-1]`."""
    more = additional_keys
    return qk("na1d_qk_with_bias", 1, query, key, kernel_size, dilation, False, bias, more)


def na1d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: int,
    dilation: int,
    additional_values: mx.array | None = None,
) -> mx.array:
    """Weighted values `[B, heads, L, head_dim]`."""
    return av("na1d_av", 1, attn, value, kernel_size, dilation, False, additional_values)


def na2d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, H, W, K*K + additional]`."""
    return qk("na2d_qk", 2, query, key, kernel_size, dilation, additional_keys=additional_keys)


def na2d_qk_with_bias(
    query: mx.array,
    key: mx.array,
    bias: mx.array | None,
    kernel_size: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, H, W, K*K + additional]` with the bias `[heads, 2K-1, 2K-1]`."""
    more = additional_keys
    return qk("na2d_qk_with_bias", 2, query, key, kernel_size, dilation, False, bias, more)


def na2d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: int,
    dilation: int,
    additional_values: mx.array | None = None,
) -> mx.array:
    """Weighted values `[B, heads, H, W, head_dim]`."""
    return av("na2d_av", 2, attn, value, kernel_size, dilation, False, additional_values)


def na3d_qk_with_bias(
    query: mx.array,
    key: mx.array,
    bias: mx.array | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, D, H, W, Kd*K*K + additional]`, bias `[heads, 2Kd-1, 2K-1, 2K-1]`."""
    kernel, step = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return qk("na3d_qk_with_bias", 3, query, key, kernel, step, False, bias, additional_keys)


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, D, H, W, Kd*K*K + additional]`."""
    sizes = kernel_size_d, kernel_size, dilation_d, dilation
    return na3d_qk_with_bias(query, key, None, *sizes, additional_keys)


def na3d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_values: mx.array | None = None,
) -> mx.array:
    """Weighted values `[B, heads, D, H, W, head_dim]`."""
    kernel, step = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return av("na3d_av", 3, attn, value, kernel, step, False, additional_values)


def natten3dqkrpb(
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> mx.array:
    """The older name of [`na3d_qk_with_bias`][], without additional keys."""
    sizes = kernel_size_d, kernel_size, dilation_d, dilation
    return na3d_qk_with_bias(query, key, rpb, *sizes)


natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av


class NeighborhoodAttention3D(Layer):
    """The 3-D layer of NATTEN 0.15: depth has its own kernel size and dilation."""

    rank = 3

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int = 1,
        dilation_d: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        kernel = (kernel_size_d or kernel_size, kernel_size, kernel_size)
        step = (dilation_d or dilation, dilation, dilation)
        rest = bias, qkv_bias, qk_scale, attn_drop, proj_drop
        super().__init__(dim, num_heads, kernel, step, *rest)

"""The two halves under the names of natten-mlx's `extras.allin1`: biased logits, and values."""

from __future__ import annotations

import mlx.core as mx

from .neighborhood import IntOrInts, Neighborhood
from .unfused import attend_av, attend_qk


def na1d_qk_rpb(
    query: mx.array,
    key: mx.array,
    rpb: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    scale: float | None = None,
) -> mx.array:
    """[`na1d_qk`][] with a bias and, unless `scale` is given, without scaling.

    `rpb` is `[heads, 2 * kernel_size - 1]`.
    """
    op = "na1d_qk_rpb"
    hood = Neighborhood.of(1, kernel_size, dilation, op=op)
    scale = 1.0 if scale is None else scale
    return attend_qk(hood, query, key, scale=scale, rpb=rpb, op=op)


def na2d_qk_rpb(
    query: mx.array,
    key: mx.array,
    rpb: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    scale: float | None = None,
) -> mx.array:
    """[`na2d_qk`][] with a bias and, unless `scale` is given, without scaling.

    The signature that DiNAT-based models know from natten-mlx's `extras.allin1`, for kernels of
    any size. `rpb` is `[heads, 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1]`.
    """
    op = "na2d_qk_rpb"
    hood = Neighborhood.of(2, kernel_size, dilation, op=op)
    scale = 1.0 if scale is None else scale
    return attend_qk(hood, query, key, scale=scale, rpb=rpb, op=op)


def na3d_qk_rpb(
    query: mx.array,
    key: mx.array,
    rpb: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    *,
    scale: float | None = None,
) -> mx.array:
    """[`na3d_qk`][] with a bias and, unless `scale` is given, without scaling.

    `rpb` is `[heads, 2 * kernel_size - 1 per axis]`.
    """
    op = "na3d_qk_rpb"
    hood = Neighborhood.of(3, kernel_size, dilation, op=op)
    scale = 1.0 if scale is None else scale
    return attend_qk(hood, query, key, scale=scale, rpb=rpb, op=op)


def na1d_av_fused(
    attn: mx.array, value: mx.array, kernel_size: IntOrInts, dilation: IntOrInts = 1
) -> mx.array:
    """[`na1d_av`][]: the other half of [`na1d_qk_rpb`][]."""
    op = "na1d_av_fused"
    hood = Neighborhood.of(1, kernel_size, dilation, op=op)
    return attend_av(hood, attn, value, op=op)


def na2d_av_fused(
    attn: mx.array, value: mx.array, kernel_size: IntOrInts, dilation: IntOrInts = 1
) -> mx.array:
    """[`na2d_av`][]: the other half of [`na2d_qk_rpb`][]."""
    op = "na2d_av_fused"
    hood = Neighborhood.of(2, kernel_size, dilation, op=op)
    return attend_av(hood, attn, value, op=op)


def na3d_av_fused(
    attn: mx.array, value: mx.array, kernel_size: IntOrInts, dilation: IntOrInts = 1
) -> mx.array:
    """[`na3d_av`][]: the other half of [`na3d_qk_rpb`][]."""
    op = "na3d_av_fused"
    hood = Neighborhood.of(3, kernel_size, dilation, op=op)
    return attend_av(hood, attn, value, op=op)

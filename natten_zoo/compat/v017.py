"""NATTEN 0.17: fused and unfused operators, causal masking and parameters per axis.

`na*d` are heads last and scaled, `na*d_qk` and `na*d_av` heads first and unscaled.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx

from .. import layers
from ..ops.functional import attend
from ..ops.neighborhood import BoolOrBools, IntOrInts, Neighborhood, flags_per_axis
from .heads_first import av, qk
from .knobs import (
    are_deterministic_algorithms_enabled,
    disable_autotuner,
    disable_gemm_na,
    disable_tf32,
    disable_tiled_na,
    enable_gemm_na,
    enable_tf32,
    enable_tiled_na,
    force_flex_attention,
    get_memory_usage_preference,
    has_bfloat,
    has_cuda,
    has_fna,
    has_fp32_gemm,
    has_fp64_gemm,
    has_fused_na,
    has_gemm,
    has_half,
    has_tf32_gemm,
    is_autotuner_enabled,
    is_autotuner_enabled_for_backward,
    is_autotuner_enabled_for_forward,
    is_autotuner_thorough_for_backward,
    is_autotuner_thorough_for_forward,
    is_fna_enabled,
    is_fused_na_enabled,
    is_gemm_na_enabled,
    is_kv_parallelism_in_fused_na_enabled,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    is_tf32_in_gemm_na_enabled,
    is_tiled_na_enabled,
    set_memory_usage_preference,
    should_use_flex_attention,
    use_autotuner,
    use_deterministic_algorithms,
    use_flex_attention,
    use_fna,
    use_fused_na,
    use_gemm_na,
    use_kv_parallelism_in_fused_na,
    use_tf32_in_gemm_na,
    use_tiled_na,
)
from .v014 import add_natten_handle, get_flops

__version__ = "0.17.5"

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "add_natten_handle",
    "are_deterministic_algorithms_enabled",
    "disable_autotuner",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "force_flex_attention",
    "get_flops",
    "get_memory_usage_preference",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "set_memory_usage_preference",
    "should_use_flex_attention",
    "use_autotuner",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
]


def na1d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    additional_keys: mx.array | None = None,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, L, K + additional]`."""
    return _qk("na1d_qk", 1, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na2d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    additional_keys: mx.array | None = None,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, H, W, prod(K) + additional]`."""
    return _qk("na2d_qk", 2, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    additional_keys: mx.array | None = None,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
) -> mx.array:
    """Logits `[B, heads, D, H, W, prod(K) + additional]`."""
    return _qk("na3d_qk", 3, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na1d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    additional_values: mx.array | None = None,
    is_causal: BoolOrBools = False,
) -> mx.array:
    """Weighted values `[B, heads, L, head_dim]`."""
    return av("na1d_av", 1, attn, value, kernel_size, dilation, is_causal, additional_values)


def na2d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    additional_values: mx.array | None = None,
    is_causal: BoolOrBools = False,
) -> mx.array:
    """Weighted values `[B, heads, H, W, head_dim]`."""
    return av("na2d_av", 2, attn, value, kernel_size, dilation, is_causal, additional_values)


def na3d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts,
    additional_values: mx.array | None = None,
    is_causal: BoolOrBools = False,
) -> mx.array:
    """Weighted values `[B, heads, D, H, W, head_dim]`; upstream has no default dilation here."""
    return av("na3d_av", 3, attn, value, kernel_size, dilation, is_causal, additional_values)


def na1d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
) -> mx.array:
    """Fused attention on `[B, L, heads, head_dim]`; also differentiable in `rpb`."""
    more = additional_keys, additional_values
    return _fused(1, query, key, value, kernel_size, dilation, is_causal, rpb, scale, *more)


def na2d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
) -> mx.array:
    """Fused attention on `[B, H, W, heads, head_dim]`; also differentiable in `rpb`."""
    more = additional_keys, additional_values
    return _fused(2, query, key, value, kernel_size, dilation, is_causal, rpb, scale, *more)


def na3d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    is_causal: BoolOrBools = False,
    rpb: mx.array | None = None,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
) -> mx.array:
    """Fused attention on `[B, D, H, W, heads, head_dim]`; also differentiable in `rpb`."""
    more = additional_keys, additional_values
    return _fused(3, query, key, value, kernel_size, dilation, is_causal, rpb, scale, *more)


class _Layer(layers.NeighborhoodAttention):
    """The layers of NATTEN 0.17: the bias is off unless asked for; small inputs raise."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: IntOrInts,
        dilation: IntOrInts = 1,
        is_causal: BoolOrBools = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        if rel_pos_bias:
            _check_bias_or_causal(type(self).__name__, self.rank, is_causal)
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=rel_pos_bias,
        )


class NeighborhoodAttention1D(_Layer):
    """The 1-D layer of NATTEN 0.17."""

    rank = 1


class NeighborhoodAttention2D(_Layer):
    """The 2-D layer of NATTEN 0.17."""

    rank = 2


class NeighborhoodAttention3D(_Layer):
    """The 3-D layer of NATTEN 0.17."""

    rank = 3


def _qk(
    op: str,
    rank: int,
    query: mx.array,
    key: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts,
    additional_keys: mx.array | None,
    is_causal: BoolOrBools,
    rpb: mx.array | None,
) -> mx.array:
    if rpb is not None:
        _check_bias_or_causal(op, rank, is_causal)
    return qk(op, rank, query, key, kernel_size, dilation, is_causal, rpb, additional_keys)


def _fused(
    rank: int,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    dilation: IntOrInts,
    is_causal: BoolOrBools,
    rpb: mx.array | None,
    scale: float | None,
    additional_keys: mx.array | None,
    additional_values: mx.array | None,
) -> mx.array:
    op = f"na{rank}d"
    if rpb is not None:
        _check_bias_or_causal(op, rank, is_causal)
    hood = Neighborhood.of(rank, kernel_size, dilation=dilation, is_causal=is_causal, op=op)
    out = attend(
        hood,
        query,
        key,
        value,
        scale=scale or None,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=False,
    )
    return cast(mx.array, out)


def _check_bias_or_causal(op: str, rank: int, is_causal: BoolOrBools) -> None:
    if any(flags_per_axis(op, "is_causal", is_causal, rank)):
        raise NotImplementedError(
            f"[{op}] a relative positional bias with a causal axis is undefined in NATTEN 0.17; "
            "natten_zoo.ops has it."
        )

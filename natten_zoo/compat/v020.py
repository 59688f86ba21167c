"""NATTEN 0.20: as 0.21 without LSE, causal and packed `attention`, and GQA in the kernels.

`stride` is our `window_stride`. What tunes CUDA kernels is accepted and ignored.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..ops import dense
from ..ops.functional import Result
from ..ops.neighborhood import BoolOrBools, IntOrInts
from .fused import fused, merge
from .knobs import (
    allow_flex_compile,
    allow_flex_compile_backprop,
    are_deterministic_algorithms_enabled,
    disable_flex_compile,
    disable_flex_compile_backprop,
    get_bwd_configs_for_cutlass_blackwell_fmha,
    get_bwd_configs_for_cutlass_blackwell_fna,
    get_bwd_configs_for_cutlass_fmha,
    get_bwd_configs_for_cutlass_fna,
    get_bwd_configs_for_cutlass_hopper_fmha,
    get_bwd_configs_for_cutlass_hopper_fna,
    get_configs_for_cutlass_blackwell_fmha,
    get_configs_for_cutlass_blackwell_fna,
    get_configs_for_cutlass_fmha,
    get_configs_for_cutlass_fna,
    get_configs_for_cutlass_hopper_fmha,
    get_configs_for_cutlass_hopper_fna,
    get_configs_for_flex_fmha,
    get_configs_for_flex_fna,
    get_memory_usage_preference,
    is_flex_compile_allowed,
    is_flex_compile_backprop_allowed,
    is_kv_parallelism_used_by_default,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    set_memory_usage_preference,
    use_deterministic_algorithms,
    use_kv_parallelism_by_default,
)
from .v021 import (
    HAS_LIBNATTEN,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)

use_kv_parallelism_in_fused_na = use_kv_parallelism_by_default
is_kv_parallelism_in_fused_na_enabled = is_kv_parallelism_used_by_default
__version__ = "0.20.1"

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "attention",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "get_bwd_configs_for_cutlass_blackwell_fmha",
    "get_bwd_configs_for_cutlass_blackwell_fna",
    "get_bwd_configs_for_cutlass_fmha",
    "get_bwd_configs_for_cutlass_fna",
    "get_bwd_configs_for_cutlass_hopper_fmha",
    "get_bwd_configs_for_cutlass_hopper_fna",
    "get_configs_for_cutlass_blackwell_fmha",
    "get_configs_for_cutlass_blackwell_fna",
    "get_configs_for_cutlass_fmha",
    "get_configs_for_cutlass_fna",
    "get_configs_for_cutlass_hopper_fmha",
    "get_configs_for_cutlass_hopper_fna",
    "get_configs_for_flex_fmha",
    "get_configs_for_flex_fna",
    "get_memory_usage_preference",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_kv_parallelism_in_fused_na",
]


def na1d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = 1,
    dilation: IntOrInts | None = 1,
    is_causal: BoolOrBools | None = False,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    attention_kwargs: Any = None,
    backend: Any = None,
    q_tile_shape: Any = None,
    kv_tile_shape: Any = None,
    backward_q_tile_shape: Any = None,
    backward_kv_tile_shape: Any = None,
    backward_kv_splits: Any = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    try_fuse_additional_kv: bool = False,
) -> Result:
    """Attention on `[B, L, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(1, query, key, value, *hood, scale, *more, False)


def na2d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = 1,
    dilation: IntOrInts | None = 1,
    is_causal: BoolOrBools | None = False,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    attention_kwargs: Any = None,
    backend: Any = None,
    q_tile_shape: Any = None,
    kv_tile_shape: Any = None,
    backward_q_tile_shape: Any = None,
    backward_kv_tile_shape: Any = None,
    backward_kv_splits: Any = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    try_fuse_additional_kv: bool = False,
) -> Result:
    """Attention on `[B, H, W, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(2, query, key, value, *hood, scale, *more, False)


def na3d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = 1,
    dilation: IntOrInts | None = 1,
    is_causal: BoolOrBools | None = False,
    scale: float | None = None,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    attention_kwargs: Any = None,
    backend: Any = None,
    q_tile_shape: Any = None,
    kv_tile_shape: Any = None,
    backward_q_tile_shape: Any = None,
    backward_kv_tile_shape: Any = None,
    backward_kv_splits: Any = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    try_fuse_additional_kv: bool = False,
) -> Result:
    """Attention on `[B, D, H, W, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(3, query, key, value, *hood, scale, *more, False)


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    backend: Any = None,
    q_tile_size: Any = None,
    kv_tile_size: Any = None,
    backward_q_tile_size: Any = None,
    backward_kv_tile_size: Any = None,
    backward_kv_splits: Any = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Result:
    """Self- or cross-attention `[B, tokens, heads, head_dim]`."""
    return dense.attention(query, key, value, scale=scale or None, return_lse=return_lse)


def merge_attentions(
    outputs: list[mx.array], lse_tensors: list[mx.array], torch_compile: bool = True
) -> tuple[mx.array, mx.array]:
    """[`natten_zoo.ops.merge_attentions`][] of at least two `[B, tokens, heads, head_dim]`."""
    return merge(outputs, lse_tensors)

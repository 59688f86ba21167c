"""NATTEN 0.21: everything heads last and fused; `stride` is our `window_stride`.

Arguments that choose and tune CUDA kernels are accepted and ignored: they change no number. What
upstream keeps in submodules (`natten.token_permute`, ...) stands beside the rest.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..ops import dense
from ..ops.functional import Result
from ..ops.neighborhood import BoolOrBools, IntOrInts
from .fused import Layer, fused, merge
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
from .v021_tools import (
    cumulative,
    generate_varlen_parameters,
    na1d_reference,
    na2d_reference,
    na3d_reference,
    token_permute_operation,
    token_permute_varlen_operation,
    token_unpermute_operation,
    token_unpermute_varlen_operation,
)

HAS_LIBNATTEN = False

use_kv_parallelism_in_fused_na = use_kv_parallelism_by_default
is_kv_parallelism_in_fused_na_enabled = is_kv_parallelism_used_by_default
__version__ = "0.21.7"

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
    "generate_varlen_parameters",
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
    "na1d_reference",
    "na2d",
    "na2d_reference",
    "na3d",
    "na3d_reference",
    "set_memory_usage_preference",
    "token_permute_operation",
    "token_permute_varlen_operation",
    "token_unpermute_operation",
    "token_unpermute_varlen_operation",
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
    return_lse: bool = False,
) -> Result:
    """Attention on `[B, L, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(1, query, key, value, *hood, scale, *more, return_lse)


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
    return_lse: bool = False,
) -> Result:
    """Attention on `[B, H, W, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(2, query, key, value, *hood, scale, *more, return_lse)


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
    return_lse: bool = False,
) -> Result:
    """Attention on `[B, D, H, W, heads, head_dim]`; what tunes CUDA kernels is ignored."""
    more = additional_keys, additional_values
    hood = kernel_size, stride, dilation, is_causal
    return fused(3, query, key, value, *hood, scale, *more, return_lse)


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: mx.array | None = None,  # noqa: N803
    seqlens_KV: mx.array | None = None,  # noqa: N803
    cumulative_seqlen_Q: mx.array | None = None,  # noqa: N803
    cumulative_seqlen_KV: mx.array | None = None,  # noqa: N803
    max_seqlen_Q: int | None = None,  # noqa: N803
    max_seqlen_KV: int | None = None,  # noqa: N803
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
    """Self- or cross-attention `[B, tokens, heads, head_dim]`, causal or packed (batch 1).

    Sequences are packed by their lengths or by the running sums of them; the maxima that upstream
    needs for its kernels' grid are ignored.
    """
    return dense.attention(
        query,
        key,
        value,
        is_causal=is_causal,
        scale=scale or None,
        cumulative_seqlen_q=_cumulative(seqlens_Q, cumulative_seqlen_Q),
        cumulative_seqlen_kv=_cumulative(seqlens_KV, cumulative_seqlen_KV),
        return_lse=return_lse,
    )


def _cumulative(lengths: mx.array | None, given: mx.array | None) -> mx.array | None:
    if lengths is None:
        return given
    if given is not None:
        raise ValueError("[attention] lengths must be given as such or cumulative but got both.")
    return cumulative(lengths)


def merge_attentions(
    outputs: list[mx.array],
    lse_tensors: list[mx.array],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[mx.array, mx.array]:
    """[`natten_zoo.ops.merge_attentions`][] of at least two `[B, tokens, heads, head_dim]`.

    `use_autograd_fix` repairs upstream's gradients; ours need no repair and it is ignored.
    """
    return merge(outputs, lse_tensors)


class NeighborhoodAttention1D(Layer):
    """The 1-D layer of NATTEN 0.20 and 0.21."""

    rank = 1


class NeighborhoodAttention2D(Layer):
    """The 2-D layer of NATTEN 0.20 and 0.21."""

    rank = 2


class NeighborhoodAttention3D(Layer):
    """The 3-D layer of NATTEN 0.20 and 0.21."""

    rank = 3

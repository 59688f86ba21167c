"""NATTEN's switches for its CUDA kernels: accepted, remembered, without effect on MLX.

They chose between implementations of one result (GEMM or tiled kernels, TF32, the autotuner,
FlexAttention, memory against speed), so ignoring them changes no number. Questions about the
hardware are answered for MLX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_state: dict[str, Any] = {"memory_usage": "default"}


def has_cuda() -> bool:
    """Whether NATTEN's CUDA library is there: no."""
    return False


def has_half(device_index: Any = None) -> bool:
    """Whether float16 is supported: yes."""
    return True


def has_bfloat(device_index: Any = None) -> bool:
    """Whether bfloat16 is supported: yes."""
    return True


def has_gemm(device_index: Any = None) -> bool:
    """Whether CUTLASS kernels can run: no, likewise for the other kernels of the CUDA library."""
    return False


has_fna = has_fused_na = has_tf32_gemm = has_fp32_gemm = has_fp64_gemm = has_gemm


def _switch(name: str, default: bool = False) -> tuple[Callable[..., None], Callable[[], bool]]:
    def use(mode: bool = True, *_: Any, **__: Any) -> None:
        """Remembers the mode; without effect on MLX."""
        _state[name] = bool(mode)

    def is_enabled() -> bool:
        """The mode that was asked for last."""
        return bool(_state.get(name, default))

    return use, is_enabled


_fused, is_fused_na_enabled = _switch("fused_na")
use_kv_parallelism_in_fused_na, is_kv_parallelism_in_fused_na_enabled = _switch("kv_parallelism")
# From 0.20 on it is used unless it is switched off.
use_kv_parallelism_by_default, is_kv_parallelism_used_by_default = _switch("kv_by_default", True)
use_tf32_in_gemm_na, is_tf32_in_gemm_na_enabled = _switch("tf32")
use_tiled_na, is_tiled_na_enabled = _switch("tiled_na")
use_gemm_na, is_gemm_na_enabled = _switch("gemm_na")
use_deterministic_algorithms, are_deterministic_algorithms_enabled = _switch("deterministic")
_flex, should_use_flex_attention = _switch("flex")
_compile, is_flex_compile_allowed = _switch("flex_compile")
_compile_backprop, is_flex_compile_backprop_allowed = _switch("flex_compile_backprop")


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Remembers the modes, of which those but the first are off without it; no effect on MLX."""
    _fused(mode)
    use_kv_parallelism_in_fused_na(mode and kv_parallel)
    _flex(mode and (use_flex_attention or force_flex_attention))


use_fna, is_fna_enabled = use_fused_na, is_fused_na_enabled


def use_flex_attention() -> None:
    """Remembers the choice of FlexAttention; without effect on MLX."""
    _flex(True)


def force_flex_attention() -> None:
    """The same as `use_flex_attention` here, where it is never used."""
    _flex(True)


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    *_: Any,
    **__: Any,
) -> None:
    """Remembers the modes that are given; without effect on MLX."""
    modes = forward_pass, backward_pass, thorough_mode_forward, thorough_mode_backward
    for name, mode in zip(_TUNED, modes, strict=True):
        if mode is not None:
            _state[name] = bool(mode)


def disable_autotuner() -> None:
    """Undoes `use_autotuner`."""
    use_autotuner(False, False, False, False)


_TUNED = ("tune_forward", "tune_backward", "thorough_forward", "thorough_backward")
(
    is_autotuner_enabled_for_forward,
    is_autotuner_enabled_for_backward,
    is_autotuner_thorough_for_forward,
    is_autotuner_thorough_for_backward,
) = (_switch(name)[1] for name in _TUNED)


def is_autotuner_enabled() -> bool:
    """Whether it was switched on for either pass."""
    return is_autotuner_enabled_for_forward() or is_autotuner_enabled_for_backward()


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Remembers the modes; without effect on MLX."""
    _compile(mode)
    _compile_backprop(backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Remembers the mode; without effect on MLX."""
    _compile_backprop(mode)


def disable_flex_compile() -> None:
    """Undoes [`allow_flex_compile`][] (upstream's own function enables it by mistake)."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """Undoes [`allow_flex_compile_backprop`][]."""
    _compile_backprop(False)


def enable_tf32() -> bool:
    """Without effect: the kernels keep float32. Returns False, as where there is no TF32.

    MLX's own products round to TF32 on an M5 and on NVIDIA GPUs unless `MLX_ENABLE_TF32=0` is in
    the environment.
    """
    return False


def disable_tf32() -> bool:
    """Returns False: TF32 is never on in the kernels; see [`enable_tf32`][]."""
    return False


def enable_tiled_na() -> None:
    """Without effect on MLX."""
    use_tiled_na(True)


def disable_tiled_na() -> None:
    """Without effect on MLX."""
    use_tiled_na(False)


def enable_gemm_na() -> None:
    """Without effect on MLX."""
    use_gemm_na(True)


def disable_gemm_na() -> None:
    """Without effect on MLX."""
    use_gemm_na(False)


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remembers `"default"`, `"strict"` or `"unrestricted"`; without effect on MLX.

    Raises:
        ValueError: If `pref` is something else.
    """
    if pref not in ("default", "strict", "unrestricted"):
        raise ValueError(
            "[set_memory_usage_preference] 'pref' must be default, strict or unrestricted but got "
            f"{pref!r}."
        )
    _state["memory_usage"] = pref


def get_memory_usage_preference() -> str:
    """The preference that was set last."""
    return _state["memory_usage"]


def is_memory_usage_default() -> bool:
    """Whether the preference is `"default"`."""
    return get_memory_usage_preference() == "default"


def is_memory_usage_strict() -> bool:
    """Whether the preference is `"strict"`."""
    return get_memory_usage_preference() == "strict"


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is `"unrestricted"`."""
    return get_memory_usage_preference() == "unrestricted"


def _no_configs(*_: Any, **__: Any) -> list[Any]:
    """Tile configurations of NATTEN's kernels for a problem: none on MLX."""
    return []


get_configs_for_cutlass_fna = get_configs_for_cutlass_fmha = _no_configs
get_bwd_configs_for_cutlass_fna = get_bwd_configs_for_cutlass_fmha = _no_configs
get_configs_for_cutlass_hopper_fna = get_configs_for_cutlass_hopper_fmha = _no_configs
get_bwd_configs_for_cutlass_hopper_fna = get_bwd_configs_for_cutlass_hopper_fmha = _no_configs
get_configs_for_cutlass_blackwell_fna = get_configs_for_cutlass_blackwell_fmha = _no_configs
get_bwd_configs_for_cutlass_blackwell_fna = get_bwd_configs_for_cutlass_blackwell_fmha = _no_configs
get_configs_for_flex_fna = get_configs_for_flex_fmha = _no_configs

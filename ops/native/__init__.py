"""The compiled tier: on the CPU MLX primitives in C++, on a GPU the kernels of metal/ from C++.

The extension is optional. ``NATTEN_ZOO_NATIVE=1 pip install natten-zoo`` compiles it, and
``python scripts/build_native.py`` does so in a clone. It works with the very version of MLX that it
was compiled for; with another one the tier is off and says so once.
"""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache
from typing import Any

# First: it loads the library that the extension links to.
import mlx.core as mx

from .. import gpu
from ..problem import DTYPES, Problem
from .programs import compiled

NAME = "nanobind"


def _load() -> tuple[Any, str | None]:
    """The extension, or None and why there is none."""
    try:
        ext = importlib.import_module("._ext", __name__)
    except ModuleNotFoundError:
        return None, "it is not compiled (NATTEN_ZOO_NATIVE=1 pip install natten-zoo)"
    except ImportError as error:
        return _off(f"its extension cannot be loaded ({error})")
    running = mx.__version__  # type: ignore[attr-defined]
    if running != ext.MLX_VERSION:
        return _off(f"it was compiled for MLX {ext.MLX_VERSION}, but this is {running}")
    return ext, None


def _off(reason: str) -> tuple[None, str]:
    warnings.warn(f"natten_zoo's native tier is off: {reason}.", RuntimeWarning, stacklevel=2)
    return None, reason


_ext, _missing = _load()


def why_not(problem: Problem) -> str | None:
    """Why this tier cannot run a problem; None if it can."""
    if _missing:
        return _missing
    if _on_gpu():
        return gpu.why_not(problem)
    if problem.dtype not in DTYPES:
        return f"it has no kernels for {problem.dtype}"
    return None


def outruns_dense(problem: Problem) -> bool:
    """Always on a CPU; on a GPU like the kernels."""
    return not _on_gpu() or gpu.outruns_dense(problem)


def is_differentiable() -> bool:
    """Whether its arrays carry the rules of ops/autograd.py by themselves."""
    return not _on_gpu()


def _on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def fma_peak() -> float:
    """float32 operations per second that the pool's threads reach on registers alone."""
    return _ext.fma_peak()


def forward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """``softmax(scale * q k^T + rpb) v`` over each window, and its LSE."""
    out, lse = _apply("forward", problem, [query, key, value], rpb, lengths)
    return out, lse


def backward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    out: mx.array,
    lse: mx.array,
    d_out: mx.array,
    d_lse: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """The gradients of `forward` for those of both its outputs."""
    inputs = [query, key, value, out, lse, d_out, d_lse]
    d_query, d_key, d_value, *d_rpb = _apply("backward", problem, inputs, rpb, lengths)
    return d_query, d_key, d_value, _like(rpb, d_rpb)


def qk(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> mx.array:
    """``scale * q k^T + rpb`` by window slot, ``-inf`` in the slots that a query lacks."""
    return _apply("qk", problem, [query, key], rpb, lengths)[0]


def qk_backward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    d_logits: mx.array,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """The gradients of `qk`."""
    inputs = [query, key, d_logits]
    d_query, d_key, *d_rpb = _apply("qk_backward", problem, inputs, rpb, lengths)
    return d_query, d_key, _like(rpb, d_rpb)


def av(problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None) -> mx.array:
    """The values of each window, weighted by slot."""
    return _apply("av", problem, [attn, value], None, lengths)[0]


def av_backward(
    problem: Problem,
    attn: mx.array,
    value: mx.array,
    lengths: mx.array | None,
    d_out: mx.array,
) -> tuple[mx.array, mx.array]:
    """The gradients of `av`."""
    d_attn, d_value = _apply("av_backward", problem, [attn, value, d_out], None, lengths)
    return d_attn, d_value


def _apply(
    op: str,
    problem: Problem,
    inputs: list[mx.array],
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> list[mx.array]:
    if _on_gpu():
        return compiled(_ext, op, problem)([*inputs, *(x for x in (rpb, lengths) if x is not None)])
    return _ext.apply(getattr(_ext.Op, op.upper()), _call(problem), inputs, rpb, lengths)


def _like(rpb: mx.array | None, d_rpb: list[mx.array]) -> mx.array | None:
    return None if rpb is None else d_rpb[0].astype(rpb.dtype)


@lru_cache(maxsize=1024)
def _call(problem: Problem) -> Any:
    hood = problem.neighborhood
    return _ext.make_call(
        spatial=problem.spatial,
        kernel_size=hood.kernel_size,
        dilation=hood.dilation,
        stride=hood.stride,
        window_stride=hood.window_stride,
        is_causal=hood.is_causal,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        head_dim=problem.head_dim,
        value_dim=problem.value_dim,
        scale=problem.scale,
    )

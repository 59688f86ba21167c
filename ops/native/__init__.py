"""The compiled tier: on the CPU MLX primitives in C++, on a GPU the kernels of metal/ from C++.

The extension is optional. `NATTEN_ZOO_NATIVE=1 pip install natten-zoo` compiles it, and
`python scripts/build_native.py` does so in a clone. It works with the very version of MLX that it
was compiled for, and with the face that it was compiled for, ops/native/extension.py; with others
the tier is off, and says once how to compile it again.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import cast

# First: it loads the library that the extension links to.
import mlx.core as mx

from .. import gpu
from ..exports import export_target
from ..gpu.device import current, on_gpu
from ..problem import Problem
from ..tier import Launched, Run, Support
from .extension import Call, Extension, Operation
from .programs import compiled

NAME = "nanobind"
SUPPORT = Support(
    features=frozenset(
        ("dilation", "stride", "window_stride", "is_causal", "has_rpb", "has_lengths", "finer")
    )
)


def _load() -> tuple[Extension | None, str | None]:
    """The extension, or None and why there is none."""
    try:
        ext = cast(Extension, importlib.import_module("._ext", __name__))
    except ModuleNotFoundError:
        return None, f"it is not compiled: {_how()}"
    except ImportError as error:
        return _off(f"its extension cannot be loaded ({error})")
    running = mx.__version__  # type: ignore[attr-defined]
    if running != ext.MLX_VERSION:
        return _off(f"it was compiled for MLX {ext.MLX_VERSION}, but this is {running}")
    if getattr(ext, "FACE", None) != _face():
        return _off("it was compiled from other sources than these")
    return ext, None


def _face() -> str:
    """Of what an extension has to offer: the digest that it is compiled with."""
    return sha256(Path(__file__).with_name("extension.py").read_bytes()).hexdigest()


def _how() -> str:
    """The command that compiles the extension."""
    here = Path(__file__).resolve().parents[2] / "scripts" / "build_native.py"
    if here.exists():
        return "python scripts/build_native.py"
    return "NATTEN_ZOO_NATIVE=1 pip install --force-reinstall --no-deps natten-zoo"


def _off(reason: str) -> tuple[None, str]:
    reason += f"; compile it again: {_how()}"
    warnings.warn(f"natten_zoo's native tier is off: {reason}.", RuntimeWarning, stacklevel=2)
    return None, reason


_ext, _missing = _load()


def why_not(problem: Problem) -> str | None:
    """Why this tier cannot run a problem; None if it can."""
    if _missing:
        return _missing
    if export_target():
        return "what is compiled can't be exported: the pure tier and the kernels can"
    if on_gpu():
        return gpu.SUPPORT.why_not(problem) or gpu.why_not(problem)
    return None


def why_dense(problem: Problem) -> str | None:
    """Of the kernels on a GPU; on a CPU MLX's attention takes at least three times as long."""
    return gpu.why_dense(problem) if on_gpu() else None


def differentiable(op: str, problem: Problem) -> Run | None:
    """A primitive, on a CPU: it has the rules of ops/autograd.py by itself."""
    return None if on_gpu() else partial(_extension().apply, _operation(op), _call(problem))


def is_on_cpu() -> bool:
    """Whether it is compiled, and the default device is its own."""
    return _missing is None and not on_gpu()


def gelu(x: mx.array) -> mx.array:
    """GELU by the error function of an array of any shape, on the CPU."""
    return _extension().gelu(x)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Layer norm of the last axis of an array, all of one dtype, on the CPU."""
    return _extension().layer_norm(x, weight, bias, eps)


def _extension() -> Extension:
    if _ext is None:
        raise RuntimeError(f"natten_zoo's native tier is off: {_missing}.")
    return _ext


def fma_peak() -> float:
    """float32 operations per second that the pool's threads reach on registers alone."""
    return _extension().fma_peak()


def launch(
    op: str,
    problem: Problem,
    arrays: Sequence[mx.array],
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> list[mx.array]:
    """Runs an operation: as a primitive on a CPU, as the GPU tier's program on a GPU.

    Raises:
        KernelError: If this GPU cannot build a kernel.
    """
    if on_gpu():
        run = compiled(_extension(), op, problem, current())
        return run([*arrays, *(x for x in (rpb, lengths) if x is not None)])
    if op.startswith("backward") and not problem.has_lse:  # a primitive has all gradients
        arrays = [*arrays, mx.zeros(problem.queries)]
    return _extension().apply(_operation(op), _call(problem), arrays, rpb, lengths)


_launched = Launched(launch)
forward, backward = _launched.forward, _launched.backward
backward_packed = _launched.backward_packed
qk, qk_backward = _launched.qk, _launched.qk_backward
av, av_backward = _launched.av, _launched.av_backward


@cache
def _operation(op: str) -> Operation:
    return _extension().Op[op.upper()]


@lru_cache(maxsize=1024)
def _call(problem: Problem) -> Call:
    hood = problem.neighborhood
    return _extension().make_call(
        spatial=problem.spatial,
        kernel_size=hood.kernel_size,
        dilation=hood.dilation,
        stride=hood.stride,
        window_stride=hood.window_stride,
        is_causal=hood.is_causal,
        finer=problem.finer,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        head_dim=problem.head_dim,
        value_dim=problem.value_dim,
        scale=problem.scale,
    )

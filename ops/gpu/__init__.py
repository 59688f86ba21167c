"""The GPU tier: the kernels of metal/, on Metal or on CUDA.

One text for both (docs/kernels.md). Nothing is materialised but what a caller asks for: the
backward pass recomputes the weights from the LSE, once per query and once per key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import mlx.core as mx

from .. import backend, pure
from ..problem import Problem
from . import kernels as gpu_kernels
from .kernels import FLOAT32, KernelError, launch
from .plan import MAX_DIM, MAX_ROWS
from .programs import program, proven

SMALL_MAP = 64  # tokens; at 7x7 the kernels are up to 3 times as fast as MLX's attention (H100)
NAME = "cuda" if gpu_kernels.platform() == "cuda" else "fast_metal"
Function = TypeVar("Function", bound=Callable[..., Any])


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run a problem on the default device; None if they can."""
    if gpu_kernels.platform() is None:
        return "this MLX has neither a Metal nor a CUDA back-end"
    if mx.default_device().type != mx.DeviceType.gpu:
        return "the default device is not the GPU"
    if max(problem.head_dim, problem.value_dim) > MAX_DIM:
        return f"head_dim is larger than {MAX_DIM}"
    if problem.heads * math.prod(problem.spatial) > MAX_ROWS:
        return f"a sample has more than {MAX_ROWS} rows, tokens times heads"
    if not gpu_kernels.anything_broken():
        return None
    steps = (step for op in ("forward", "backward") for step in program(op, problem).steps)
    reasons = (gpu_kernels.broken(step.kernel, step.plan) for step in steps)
    return next((reason for reason in reasons if reason), None)


def outruns_dense(problem: Problem) -> bool:
    """Whether a map is so small that one kernel, forward or backward, is all it needs."""
    return problem.neighborhood.volume <= SMALL_MAP


def is_differentiable() -> bool:
    """ops/autograd.py has the rules of this tier."""
    return False


def _or_pure(function: Function) -> Function:
    """Falls back to the pure tier where a kernel cannot be built, unless this tier is forced."""

    @wraps(function)
    def run(problem: Problem, *arrays: Any) -> Any:
        try:
            return function(problem, *arrays)
        except KernelError as error:
            if backend.get_backend() == NAME:
                raise
            backend.record(problem, pure.NAME, {NAME: str(error)})
            return getattr(pure, function.__name__)(problem, *arrays)

    return run  # type: ignore[return-value]


@_or_pure
def forward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """``(out, lse)``."""
    out, lse = _run("forward", problem, [query, key, value], rpb, lengths)
    return out, lse


@_or_pure
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
    """``(d_query, d_key, d_value, d_rpb)``, the weights recomputed from the LSE."""
    arrays = [query, key, value, out, lse, d_out, d_lse]
    d_query, d_key, d_value, *d_rpb = _run("backward", problem, arrays, rpb, lengths)
    return d_query, d_key, d_value, _sum_rpb(d_rpb, rpb)


@_or_pure
def qk(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> mx.array:
    """Logits ``[B, *out, H, prod K]``."""
    return _run("qk", problem, [query, key], rpb, lengths)[0]


@_or_pure
def qk_backward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    d_logits: mx.array,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """``(d_query, d_key, d_rpb)``."""
    arrays = [query, key, d_logits]
    d_query, d_key, *d_rpb = _run("qk_backward", problem, arrays, rpb, lengths)
    return d_query, d_key, _sum_rpb(d_rpb, rpb)


@_or_pure
def av(problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None) -> mx.array:
    """``[B, *out, H, Dv]``."""
    return _run("av", problem, [attn, value], None, lengths)[0]


@_or_pure
def av_backward(
    problem: Problem,
    attn: mx.array,
    value: mx.array,
    lengths: mx.array | None,
    d_out: mx.array,
) -> tuple[mx.array, mx.array]:
    """``(d_attn, d_value)``."""
    d_attn, d_value = _run("av_backward", problem, [attn, value, d_out], None, lengths)
    return d_attn, d_value


def _run(
    op: str,
    problem: Problem,
    arrays: list[mx.array],
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> list[mx.array]:
    """Launches the steps of an operation."""
    wanted = proven(op, problem)
    values = dict(zip(wanted.arrays, arrays, strict=True))
    values["rpb"] = absent(mx.float32) if rpb is None else rpb
    values["lengths"] = absent(mx.int32)
    if lengths is not None:
        values["lengths"] = mx.concatenate([missing_axes(problem), lengths], axis=1)
    values |= {name: values[name].astype(mx.float32) for name in FLOAT32 if name in values}
    for step in wanted.steps:
        inputs = [values[name] for name in step.inputs]
        outputs = launch(step.kernel, step.plan, inputs, list(step.outputs.values()))
        values.update(zip(step.outputs, outputs, strict=True))
    return [values[name] for name in wanted.results]


def missing_axes(problem: Problem) -> mx.array:
    """``lengths`` of the axes that the kernels have and a problem has not."""
    return mx.ones((problem.batch, 3 - problem.rank), mx.int32)


@cache
def absent(dtype: mx.Dtype) -> mx.array:
    """What stands in for an array that a problem has not."""
    array = mx.zeros(8, dtype)
    mx.eval(array)
    return array


def _sum_rpb(shares: list[mx.array], rpb: mx.array | None) -> mx.array | None:
    """Every simdgroup's share of the gradient of ``rpb``, added in a fixed order."""
    return None if rpb is None else shares[0].sum(axis=1).reshape(rpb.shape).astype(rpb.dtype)

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

from . import backend, gpu_kernels, pure
from .gpu_kernels import KernelError, launch
from .gpu_plan import MAX_DIM, MAX_ROWS, Plan, plan
from .problem import Problem

NAME = "cuda" if gpu_kernels.platform() == "cuda" else "fast_metal"
Function = TypeVar("Function", bound=Callable[..., Any])
Extras = tuple[mx.array, mx.array]


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
    plans = {
        "attention_forward": _forward_plan,
        "attention_backward_query": _query_plan,
        "attention_backward_key": _key_plan,
    }
    reasons = (gpu_kernels.broken(name, plan(problem)) for name, plan in plans.items())
    return next((reason for reason in reasons if reason), None)


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
    lse_shape = query.shape[:-1]
    out, lse = launch(
        "attention_forward",
        _forward_plan(problem),
        [query, key, value, *_extras(problem, rpb, lengths)],
        [(*lse_shape, problem.value_dim), lse_shape],
    )
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
    extras, layout = _extras(problem, rpb, lengths), _query_plan(problem)
    d_query, delta, d_rpb = launch(
        "attention_backward_query",
        layout,
        [query, key, value, out, d_out, lse, d_lse.astype(mx.float32), *extras],
        [query.shape, lse.shape, _rpb_shares(problem, layout)],
    )
    d_key, d_value = launch(
        "attention_backward_key",
        _key_plan(problem),
        [query, key, value, d_out, lse, delta, *extras],
        [key.shape, value.shape],
    )
    return d_query, d_key, d_value, _sum_rpb(problem, d_rpb, rpb)


def _forward_plan(problem: Problem) -> Plan:
    dims = (problem.head_dim, problem.value_dim)
    return plan(problem, dims, scale=problem.scale, has_rpb=problem.has_rpb)


def _query_plan(problem: Problem) -> Plan:
    dims, rpb = (problem.head_dim, problem.value_dim), problem.has_rpb
    return plan(problem, dims, scale=problem.scale, has_rpb=rpb, sums_rpb=rpb)


def _key_plan(problem: Problem) -> Plan:
    dims = (problem.head_dim, problem.value_dim)
    return plan(problem, dims, scale=problem.scale, has_rpb=problem.has_rpb, by_key=True)


def _extras(problem: Problem, rpb: mx.array | None, lengths: mx.array | None) -> Extras:
    """``lengths`` with one column per axis of the kernels, and ``rpb`` in float32."""
    if lengths is not None:
        ones = mx.ones((problem.batch, 3 - problem.rank), mx.int32)
        lengths = mx.concatenate([ones, lengths], axis=1)
    return (
        _absent(mx.int32) if lengths is None else lengths,
        _absent(mx.float32) if rpb is None else rpb.astype(mx.float32),
    )


@cache
def _absent(dtype: mx.Dtype) -> mx.array:
    """What stands in for an array that a problem has not."""
    array = mx.zeros(8, dtype)
    mx.eval(array)
    return array


def _rpb_shares(problem: Problem, layout: Plan) -> tuple[int, ...]:
    if not layout["SUMS"]:
        return (1,)
    bins = math.prod(problem.neighborhood.bias_shape)
    return (problem.heads, layout.slices * layout.simdgroups, bins)


def _sum_rpb(problem: Problem, shares: mx.array, rpb: mx.array | None) -> mx.array | None:
    """Every simdgroup's share of the gradient of ``rpb``, added in a fixed order."""
    return None if rpb is None else shares.sum(axis=1).reshape(rpb.shape).astype(rpb.dtype)


@_or_pure
def qk(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> mx.array:
    """Logits ``[B, *out, H, prod K]``."""
    dims = (problem.head_dim, problem.head_dim)
    layout = plan(problem, dims, scale=problem.scale, has_rpb=problem.has_rpb, fill=-math.inf)
    return _per_slot(problem, layout, query, key, _extras(problem, rpb, lengths))


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
    extras = _extras(problem, rpb, lengths)
    dims = (problem.head_dim, problem.head_dim)
    layout = plan(problem, dims, scale=problem.scale, sums_rpb=problem.has_rpb)
    d_query, d_rpb = _per_query(problem, layout, d_logits, key, extras)
    by_key = plan(problem, dims, scale=problem.scale, by_key=True)
    d_key = _per_key(problem, by_key, d_logits, query, key, extras)
    return d_query, d_key, _sum_rpb(problem, d_rpb, rpb)


@_or_pure
def av(problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None) -> mx.array:
    """``[B, *out, H, Dv]``."""
    layout = plan(problem, (problem.value_dim, problem.value_dim), scale=1.0)
    return _per_query(problem, layout, attn, value, _extras(problem, None, lengths))[0]


@_or_pure
def av_backward(
    problem: Problem,
    attn: mx.array,
    value: mx.array,
    lengths: mx.array | None,
    d_out: mx.array,
) -> tuple[mx.array, mx.array]:
    """``(d_attn, d_value)``."""
    extras, dims = _extras(problem, None, lengths), (problem.value_dim, problem.value_dim)
    d_attn = _per_slot(problem, plan(problem, dims, scale=1.0), d_out, value, extras)
    by_key = plan(problem, dims, scale=1.0, by_key=True)
    return d_attn, _per_key(problem, by_key, attn, d_out, value, extras)


def _per_slot(
    problem: Problem, layout: Plan, query: mx.array, key: mx.array, extras: Extras
) -> mx.array:
    shape = (*query.shape[:-1], problem.neighborhood.volume)
    return launch("qk", layout, [query, key, *extras], [shape])[0]


def _per_query(
    problem: Problem, layout: Plan, attn: mx.array, value: mx.array, extras: Extras
) -> list[mx.array]:
    shapes = [(*attn.shape[:-1], value.shape[-1]), _rpb_shares(problem, layout)]
    return launch("av", layout, [attn, value, *extras], shapes)


def _per_key(
    problem: Problem, layout: Plan, attn: mx.array, query: mx.array, key: mx.array, extras: Extras
) -> mx.array:
    inputs = [attn, query, *extras]
    return launch("av_backward_value", layout, inputs, [key.shape])[0]

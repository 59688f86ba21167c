"""What each operation launches on a GPU, as data: gpu.py runs it from Python, native/ from C++."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from ...metal import Core
from ..problem import Problem
from . import kernels as gpu_kernels
from . import plan as gpu_plan
from .kernels import KERNELS, KernelError
from .plan import Plan, plan

# Channels that a lane has registers for, of each of four rows: of two arrays forward, of three or
# four backward.
FORWARD_CHANNELS, BACKWARD_CHANNELS = 8, 4


@dataclass(frozen=True, eq=False)
class Step:
    """One launch: the values that it reads, without ``params``, and the shapes of those it adds."""

    kernel: str
    plan: Plan
    inputs: tuple[str, ...]
    outputs: dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Program:
    """The launches of an operation over values with names.

    ``arrays`` come first, with ``rpb`` and ``lengths`` they are what the steps begin with. The
    value ``d_rpb`` among the ``results`` is the shares of each simdgroup, still to be summed.
    """

    arrays: tuple[str, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]


@lru_cache(maxsize=4096)
def program(op: str, problem: Problem) -> Program:
    """The launches of one of a tier's functions, by its name."""
    return _PROGRAMS[op](problem)


def proven(op: str, problem: Problem) -> Program:
    """The same, all its kernels built.

    A device that cannot build one of single lanes is given those of matrices from then on.

    Raises:
        KernelError: If this device cannot build a kernel.
    """
    wanted = program(op, problem)
    for step in wanted.steps:
        try:
            gpu_kernels.prove(step.kernel, step.plan)
        except KernelError:
            if step.plan.core.whole or gpu_plan.CORE:
                raise
            gpu_plan.ONLY_MATRICES = True
            forget()
            return proven(op, problem)
    return wanted


@contextmanager
def use_core(core: Core | None) -> Iterator[None]:
    """Has one core multiply wherever it can (None: the best for each launch), to compare them."""
    before, gpu_plan.CORE = gpu_plan.CORE, core
    forget()
    try:
        yield
    finally:
        gpu_plan.CORE = before
        forget()


def forget() -> None:
    """Has problems laid out anew."""
    gpu_plan.plan.cache_clear()
    program.cache_clear()


def _forward(p: Problem) -> Program:
    dims = p.head_dim, p.value_dim
    layout = plan(p, dims, scale=p.scale, has_rpb=p.has_rpb, channels=FORWARD_CHANNELS)
    step = _step("attention_forward", p, layout)
    return Program(("query", "key", "value"), (step,), ("out", "lse"))


def _backward(p: Problem) -> Program:
    dims, rpb = (p.head_dim, p.value_dim), p.has_rpb
    channels = 0 if rpb else BACKWARD_CHANNELS
    by_query = plan(p, dims, scale=p.scale, has_rpb=rpb, sums_rpb=rpb, channels=channels)
    by_key = plan(p, dims, scale=p.scale, has_rpb=rpb, by_key=True, channels=BACKWARD_CHANNELS)
    steps = (
        _step("attention_backward_query", p, by_query),
        _step("attention_backward_key", p, by_key),
    )
    arrays = ("query", "key", "value", "out", "lse", "d_out", "d_lse")
    return Program(arrays, steps, _gradients(p, "d_query", "d_key", "d_value"))


def _qk(p: Problem) -> Program:
    dims = (p.head_dim, p.head_dim)
    layout = plan(p, dims, scale=p.scale, has_rpb=p.has_rpb, fill=-math.inf)
    return Program(("query", "key"), (_step("qk", p, layout),), ("logits",))


def _qk_backward(p: Problem) -> Program:
    dims = (p.head_dim, p.head_dim)
    by_query = plan(p, dims, scale=p.scale, sums_rpb=p.has_rpb)
    by_key = plan(p, dims, scale=p.scale, by_key=True)
    steps = (
        _step("av", p, by_query, attn="d_logits", value="key", out="d_query"),
        _step("av_backward_value", p, by_key, attn="d_logits", d_out="query", d_value="d_key"),
    )
    return Program(("query", "key", "d_logits"), steps, _gradients(p, "d_query", "d_key"))


def _av(p: Problem) -> Program:
    layout = plan(p, (p.value_dim, p.value_dim), scale=1.0)
    return Program(("attn", "value"), (_step("av", p, layout),), ("out",))


def _av_backward(p: Problem) -> Program:
    dims = (p.value_dim, p.value_dim)
    by_query, by_key = plan(p, dims, scale=1.0), plan(p, dims, scale=1.0, by_key=True)
    steps = (
        _step("qk", p, by_query, query="d_out", key="value", logits="d_attn"),
        _step("av_backward_value", p, by_key),
    )
    return Program(("attn", "value", "d_out"), steps, ("d_attn", "d_value"))


_PROGRAMS: dict[str, Callable[[Problem], Program]] = {
    "forward": _forward,
    "backward": _backward,
    "qk": _qk,
    "qk_backward": _qk_backward,
    "av": _av,
    "av_backward": _av_backward,
}


def _step(kernel: str, problem: Problem, layout: Plan, **renamed: str) -> Step:
    """A launch that calls some of the kernel's arrays by other names."""
    arrays = KERNELS[kernel]
    inputs = tuple(renamed.get(name, name) for name in arrays.inputs if name != "params")
    outputs = [renamed.get(name, name) for name in arrays.outputs]
    return Step(kernel, layout, inputs, {name: _shape(name, problem, layout) for name in outputs})


def _shape(name: str, problem: Problem, layout: Plan) -> tuple[int, ...]:
    queries = (problem.batch, *problem.out, problem.heads)
    keys = (problem.batch, *problem.spatial, problem.kv_heads)
    slots = (*queries, problem.neighborhood.volume)
    shapes: dict[str, tuple[int, ...]] = {
        "out": (*queries, problem.value_dim),
        "lse": queries,
        "delta": queries,
        "logits": slots,
        "d_attn": slots,
        "d_query": (*queries, problem.head_dim),
        "d_key": (*keys, problem.head_dim),
        "d_value": (*keys, problem.value_dim),
        "d_rpb": (1,),
    }
    if name == "d_rpb" and layout["SUMS"]:
        bins = math.prod(problem.neighborhood.bias_shape)
        return (problem.heads, layout.slices * layout.teams, bins)
    return shapes[name]


def _gradients(problem: Problem, *names: str) -> tuple[str, ...]:
    return (*names, "d_rpb") if problem.has_rpb else names

"""What each operation launches on a GPU, as data: run from Python by this tier, or by native/."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from ...metal import CONTIGUOUS, kernel_without
from ..problem import Problem
from ..tier import KernelError
from .core import Held
from .device import Device
from .kernels import failures, prove
from .plan import Plan, lay_out
from .trial import try_core

# What kernels hold of each row. The registers for it are counted by scripts/registers.py.
FORWARD = Held(arrays=1, sums=1, pairs=1, registers=64, registers_3d=60)
BACKWARD_QUERY = Held(arrays=2, sums=1, pairs=2, registers=32, registers_3d=24, whole_3d=44)
BACKWARD_KEY = Held(arrays=2, sums=2, pairs=3, registers=36, registers_3d=24, whole_3d=59)


@dataclass(frozen=True, eq=False)
class Step:
    """One launch: the values that it reads, without `params`, and the shapes of those it adds.

    Of what it reads a caller brings `loose`, which may lie anyhow and must be contiguous: to ask
    MLX for that takes the time of a small launch, so nobody asks of what kernels wrote.
    """

    kernel: str
    plan: Plan
    inputs: tuple[str, ...]
    outputs: dict[str, tuple[int, ...]]
    loose: frozenset[str]


@dataclass(frozen=True, eq=False)
class Program:
    """The launches of an operation over values with names.

    `arrays` come first, with `rpb` and `lengths` they are what the steps begin with. The
    value `d_rpb` among the `results` is the shares of each simdgroup, still to be summed.
    """

    arrays: tuple[str, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]


@lru_cache(maxsize=4096)
def program(op: str, problem: Problem, device: Device) -> Program:
    """The launches of one of a tier's functions, by its name."""
    return _PROGRAMS[op](problem, device)


def proven(op: str, problem: Problem, device: Device) -> Program:
    """The same, all its kernels built.

    A device that cannot build one with some core, or does not multiply as that core expects, is
    given others from then on.

    Raises:
        KernelError: If this device cannot build a kernel.
    """
    able = usable(device)
    wanted = program(op, problem, able)
    try:
        for step in wanted.steps:
            prove(step.kernel, step.plan, try_core)
    except KernelError:
        if usable(device) == able:
            raise
        return proven(op, problem, device)
    return wanted


def usable(device: Device) -> Device:
    """A device without the cores that it has failed with, unless one was asked for.

    The last one stays: nothing could take its place.
    """
    failed = {build.core.name for build in failures(device)} - {device.cores[-1].name}
    if device.core or not failed:
        return device
    return replace(device, cores=tuple(core for core in device.cores if core.name not in failed))


def _forward(p: Problem, device: Device) -> Program:
    dims, channels = (p.head_dim, p.value_dim), FORWARD.channels(p)
    plan = lay_out(
        p,
        device,
        dims,
        scale=p.scale,
        has_rpb=p.has_rpb,
        channels=channels,
        held=FORWARD,
        has_lse=p.has_lse,
    )
    step = _step("attention_forward", p, plan)
    return Program(("query", "key", "value"), (step,), tuple(step.outputs))


def _backward(p: Problem, device: Device, packed: bool = False) -> Program:
    dims, rpb = (p.head_dim, p.value_dim), p.has_rpb
    channels = 0 if rpb else BACKWARD_QUERY.channels(p)
    by_query = lay_out(
        p,
        device,
        dims,
        scale=p.scale,
        has_rpb=rpb,
        sums_rpb=rpb,
        channels=channels,
        held=BACKWARD_QUERY,
        has_lse=p.has_lse,
    )
    channels = BACKWARD_KEY.channels(p)
    by_key = lay_out(
        p,
        device,
        dims,
        scale=p.scale,
        has_rpb=rpb,
        by_key=True,
        channels=channels,
        held=BACKWARD_KEY,
        packed=packed,
    )
    # Who does not pack reads no gradient of queries, which may be cut up otherwise than keys.
    names = {"d_key": "d_qkv"} if packed else {"d_query": "key"}
    steps = (
        _step("attention_backward_query", p, by_query),
        _step("attention_backward_key", p, by_key, **names),
    )
    arrays = ("query", "key", "value", "out", "stats", "d_out", *(("d_lse",) if p.has_lse else ()))
    results = ("d_qkv",) if packed else ("d_query", "d_key", "d_value")
    return Program(arrays, steps, _gradients(p, *results))


def _backward_packed(p: Problem, device: Device) -> Program:
    return _backward(p, device, packed=True)


def _qk(p: Problem, device: Device) -> Program:
    dims = (p.head_dim, p.head_dim)
    plan = lay_out(p, device, dims, scale=p.scale, has_rpb=p.has_rpb, fill=-math.inf)
    return Program(("query", "key"), (_step("qk", p, plan),), ("logits",))


def _qk_backward(p: Problem, device: Device) -> Program:
    dims = (p.head_dim, p.head_dim)
    by_query = lay_out(p, device, dims, scale=p.scale, sums_rpb=p.has_rpb)
    by_key = lay_out(p, device, dims, scale=p.scale, by_key=True)
    steps = (
        _step("av", p, by_query, attn="d_logits", value="key", out="d_query"),
        _step("av_backward_value", p, by_key, attn="d_logits", d_out="query", d_value="d_key"),
    )
    return Program(("query", "key", "d_logits"), steps, _gradients(p, "d_query", "d_key"))


def _av(p: Problem, device: Device) -> Program:
    plan = lay_out(p, device, (p.value_dim, p.value_dim), scale=1.0)
    return Program(("attn", "value"), (_step("av", p, plan),), ("out",))


def _av_backward(p: Problem, device: Device) -> Program:
    dims = (p.value_dim, p.value_dim)
    by_query = lay_out(p, device, dims, scale=1.0)
    by_key = lay_out(p, device, dims, scale=1.0, by_key=True)
    steps = (
        _step("qk", p, by_query, query="d_out", key="value", logits="d_attn"),
        _step("av_backward_value", p, by_key),
    )
    return Program(("attn", "value", "d_out"), steps, ("d_attn", "d_value"))


_PROGRAMS: dict[str, Callable[[Problem, Device], Program]] = {
    "forward": _forward,
    "backward": _backward,
    "backward_packed": _backward_packed,
    "qk": _qk,
    "qk_backward": _qk_backward,
    "av": _av,
    "av_backward": _av_backward,
}


def _step(kernel: str, problem: Problem, plan: Plan, **renamed: str) -> Step:
    """A launch that calls some of the kernel's arrays by other names."""
    arrays = kernel_without(kernel, plan.template.absent)
    inputs = tuple(renamed.get(name, name) for name in arrays.inputs if name != "params")
    outputs = [renamed.get(name, name) for name in arrays.outputs]
    names = (name for name in arrays.inputs if name != "params")
    wanted = {value for name, value in zip(names, inputs, strict=True) if name in CONTIGUOUS}
    shapes = {name: _shape(name, problem, plan) for name in outputs}
    return Step(kernel, plan, inputs, shapes, frozenset(wanted - {"stats", "marks"}))


def _shape(name: str, problem: Problem, plan: Plan) -> tuple[int, ...]:
    queries = problem.queries
    keys = (problem.batch, *problem.spatial, problem.kv_heads)
    slots = (*queries, problem.neighborhood.volume)
    shapes: dict[str, tuple[int, ...]] = {
        "out": (*queries, problem.value_dim),
        "lse": queries,
        "stats": (*queries, 2),
        "marks": (*queries, 4),
        "logits": slots,
        "d_attn": slots,
        "d_query": (*queries, problem.head_dim),
        "d_key": (*keys, problem.head_dim),
        "d_value": (*keys, problem.value_dim),
        "d_qkv": (problem.batch, *problem.spatial, problem.packed_heads, problem.head_dim),
        "d_rpb": (problem.heads, plan.shares, math.prod(problem.neighborhood.bias_shape)),
    }
    return shapes[name]


def _gradients(problem: Problem, *names: str) -> tuple[str, ...]:
    return (*names, "d_rpb") if problem.has_rpb else names

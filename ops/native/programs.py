"""The programs of the GPU tier, kept in C++: a call then runs no Python of ours."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import mlx.core as mx

from ...metal import kernel_without
from .. import gpu
from ..gpu import kernels
from ..gpu.device import Device
from ..gpu.programs import Step, proven
from ..problem import Problem
from .extension import BuiltKernel, Extension, Launch, Launches


@lru_cache(maxsize=4096)
def compiled(ext: Extension, op: str, problem: Problem, device: Device) -> Launches:
    """`(arrays[, rpb][, lengths]) -> results` of one of the tier's functions, in C++.

    Raises:
        KernelError: If this device cannot build a kernel of it.
    """
    wanted = proven(op, problem, device)
    if any(step.plan.cuts for step in wanted.steps):
        return lambda given: _cut_up(op, problem, len(wanted.arrays), given)
    first = wanted.steps[0].plan
    given = list(wanted.arrays)
    given += ["rpb"] if problem.has_rpb and not op.startswith("av") else []
    given += ["lengths"] if problem.has_lengths else []
    constants = {f"params {i}": step.plan.params for i, step in enumerate(wanted.steps)}
    values = [*given, *constants, *(name for step in wanted.steps for name in step.outputs)]
    place = {name: i for i, name in enumerate(dict.fromkeys(values))}
    summed = "d_rpb" in wanted.results
    return ext.Program(
        dtypes=[kernels.dtype(name, first) for name in given],
        constants=list(constants.values()),
        steps=[_step(ext, step, f"params {i}", place) for i, step in enumerate(wanted.steps)],
        results=[place[name] for name in wanted.results],
        lengths=place["lengths"] if problem.has_lengths else -1,
        columns=gpu.missing_axes(problem) if problem.rank < 3 else None,
        rpb=place["rpb"] if summed else -1,
        shares=place["d_rpb"] if summed else -1,
    )


def _cut_up(op: str, problem: Problem, count: int, given: list[mx.array]) -> list[mx.array]:
    """From Python, for launches that take long anyway."""
    extras = given[count:]
    lengths = extras.pop() if problem.has_lengths else None
    return gpu.launch(op, problem, given[:count], extras.pop() if extras else None, lengths)


def _step(ext: Extension, step: Step, params: str, place: dict[str, int]) -> Launch:
    plan, inputs = step.plan, list(step.inputs)
    arrays = kernel_without(step.kernel, plan.template.absent)
    inputs.insert(arrays.inputs.index("params"), params)
    return ext.Step(
        kernel=_built(ext, *kernels.made_of(step.kernel, plan)),
        template=plan.template.arguments,
        groups=plan.threadgroups,
        threads=plan.threads,
        inputs=[place[name] for name in inputs],
        outputs=[place[name] for name in step.outputs],
        contiguous=[name in step.loose for name in inputs],
        shapes=list(step.outputs.values()),
        dtypes=kernels.dtypes(step.kernel, plan),
    )


@cache
def _built(ext: Extension, name: str, platform: str | None, *made: Any) -> BuiltKernel:
    return ext.Kernel(platform=platform, **kernels.text(name, platform, *made))

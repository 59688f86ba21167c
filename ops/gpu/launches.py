"""The steps of a program, run from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from ...metal import CONTIGUOUS, Kernel, kernel_without
from ..problem import Problem
from . import kernels
from .cuts import Cut, join
from .plan import Plan
from .programs import Step


def run(step: Step, problem: Problem, values: Mapping[str, mx.array]) -> list[mx.array]:
    """What a step computes, in as many launches as its plan has: the same bits in one or in many.

    But for `d_rpb`, whose shares are more if they are of many.
    """
    given = ((name, values[name]) for name in step.inputs)
    inputs = [kernels.contiguous(x) if name in step.loose else x for name, x in given]
    shapes = list(step.outputs.values())
    if not step.plan.cuts:
        return kernels.launch(step.kernel, step.plan, inputs, shapes)
    kernel = kernel_without(step.kernel, step.plan.template.absent)
    finer = problem.finer if "key" in kernel.passing else ()  # own rows are queries, or keys
    cuts = [cut.on_finer(finer) for cut, _ in step.plan.cuts]
    names = [name for name in kernel.inputs if name != "params"]
    parts = []
    for cut, (_, plan) in zip(cuts, step.plan.cuts, strict=True):
        of_cut = [_taken(cut, kernel, x, problem, n) for n, x in zip(names, inputs, strict=True)]
        sizes = [
            _shape(cut, plan, shape, problem, n)
            for n, shape in zip(kernel.outputs, shapes, strict=True)
        ]
        parts.append(kernels.launch(step.kernel, plan, of_cut, sizes))
    of_outputs = zip(kernel.outputs, zip(*parts, strict=True), strict=True)
    return [_joined(cuts, arrays, problem, name) for name, arrays in of_outputs]


def _taken(cut: Cut, kernel: Kernel, array: mx.array, problem: Problem, name: str) -> mx.array:
    if name == "rpb":
        return array
    part = cut.take(array, problem.rank, own=name not in ("lengths", *kernel.passing))
    return kernels.contiguous(part) if name in CONTIGUOUS else part


def _shape(
    cut: Cut, plan: Plan, whole: Sequence[int], problem: Problem, name: str
) -> tuple[int, ...]:
    return (whole[0], plan.shares, whole[2]) if name == "d_rpb" else cut.shape(whole, problem.rank)


def _joined(
    cuts: Sequence[Cut], arrays: Sequence[mx.array], problem: Problem, name: str
) -> mx.array:
    if name == "d_rpb":
        return mx.concatenate(list(arrays), axis=1)
    return join(cuts, arrays, problem.rank)

"""The GPU tier: the kernels of metal/, on Metal or on CUDA.

One text for both (docs/kernels.md). Nothing is materialised but what a caller asks for: the
backward pass recomputes the weights from two numbers of each row, once per query and once per key.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import mlx.core as mx

from ...metal import FLOAT32
from ..exports import export_target
from ..problem import Problem
from ..tier import Launched, Support
from . import dense_cost, kernels
from .device import current, on_gpu, platform
from .launches import run
from .plan import MAX_DIM, MAX_ROWS
from .programs import program, proven, usable

NAME = "cuda" if platform() == "cuda" else "fast_metal"
SUPPORT = Support(
    features=frozenset(
        ("dilation", "stride", "window_stride", "is_causal", "has_rpb", "has_lengths", "finer")
    ),
    limits=(("head_dim", MAX_DIM), ("value_dim", MAX_DIM), ("sample_rows", MAX_ROWS)),
)


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run a problem on the default device; None if they can."""
    target = export_target()
    if target:
        return None if target == "metal" else "the function is exported for a CPU"
    if platform() is None:
        return "this MLX has neither a Metal nor a CUDA back-end"
    if not on_gpu():
        return "the default device is not the GPU"
    device = current()
    if not kernels.failures(device):
        return None
    programs = (program(op, problem, usable(device)) for op in ("forward", "backward"))
    steps = (step for each in programs for step in each.steps)
    reasons = (kernels.why_failed(step.kernel, step.plan) for step in steps)
    return next((reason for reason in reasons if reason), None)


def circumstances() -> Hashable:
    """What `why_not` depends on beside the problem: choices of a tier are kept by it."""
    return (current(), kernels.failed()) if on_gpu() else None


def core_reasons(problem: Problem) -> dict[str, str]:
    """Cores that would have computed a problem here, had the device not failed with them: why."""
    device = current()
    able = usable(device)
    if able == device:
        return {}
    programs = (program(op, problem, device) for op in ("forward", "backward"))
    wanted = {step.plan.core.name for each in programs for step in each.steps}
    wanted -= {core.name for core in able.cores}
    failures = kernels.failures(device)
    return {f"core {b.core.name}": why for b, why in failures.items() if b.core.name in wanted}


def cores() -> dict[str, str]:
    """Who multiplies on this device (docs/kernels.md), or why not: each failed at first use."""
    device = current()
    names = {core.name: "multiplies" for core in device.cores}
    able = {core.name for core in usable(device).cores}
    failures = kernels.failures(device)
    return names | {b.core.name: why for b, why in failures.items() if b.core.name not in able}


def why_dense(problem: Problem) -> str | None:
    """Why MLX's attention to all keys is faster here; None if it is not."""
    return dense_cost.why_dense(problem, current())


def differentiable(op: str, problem: Problem) -> None:
    """ops/autograd.py has the rules of this tier."""


def launch(
    op: str,
    problem: Problem,
    arrays: Sequence[mx.array],
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> list[mx.array]:
    """Launches the steps of an operation.

    Raises:
        KernelError: If this device cannot build a kernel.
    """
    # What is exported runs elsewhere: there is nothing to prove here.
    make = program if export_target() else proven
    wanted = make(op, problem, current())
    values = dict(zip(wanted.arrays, arrays, strict=True))
    if rpb is not None:
        values["rpb"] = rpb
    if lengths is not None:
        values["lengths"] = mx.concatenate([missing_axes(problem), lengths], axis=1)
    values |= {name: values[name].astype(mx.float32) for name in FLOAT32 if name in values}
    for step in wanted.steps:
        values.update(zip(step.outputs, run(step, problem, values), strict=True))
    if rpb is not None and "d_rpb" in wanted.results:  # the teams' shares, added in a fixed order
        values["d_rpb"] = values["d_rpb"].sum(axis=1).reshape(rpb.shape)
    return [values[name] for name in wanted.results]


_launched = Launched(launch)
forward, backward = _launched.forward, _launched.backward
backward_packed = _launched.backward_packed
qk, qk_backward = _launched.qk, _launched.qk_backward
av, av_backward = _launched.av, _launched.av_backward


def missing_axes(problem: Problem) -> mx.array:
    """`lengths` of the axes that the kernels have and a problem has not."""
    return mx.ones((problem.batch, 3 - problem.rank), mx.int32)

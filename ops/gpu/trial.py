"""Whether a core multiplies on a device as its text expects (`Core.on_trial`)."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from ..neighborhood import Neighborhood
from ..problem import Problem
from . import kernels
from .device import Device
from .plan import Plan, lay_out

TOLERANCE = {mx.float16: 4e-3, mx.bfloat16: 3e-2}  # of what matrices compute of the same numbers
# Rows, keys and channels that fill fragments, and those that don't.
PROBLEM = Problem(Neighborhood.of(2, 5), 1, (12, 13), 1, 1, 48, 48, 48**-0.5, mx.float16)

_stood: set[tuple[str | None, str, str, mx.Dtype]] = set()


def try_core(plan: Plan) -> None:
    """Computes one problem with a plan's core and with matrices, once for each device and dtype.

    Raises:
        RuntimeError: If the results are not the same, but for rounding.
    """
    device, core, dtype = plan.device, plan.core, plan.template.dtype
    trial = device.platform, device.generation, core.name, dtype
    if not core.on_trial or trial in _stood:
        return
    got, wanted = (_attend(replace(device, core=c), dtype) for c in (core, device.cores[-1]))
    error, largest = (float(mx.abs(x).max()) for x in (got - wanted, wanted))
    if not error <= TOLERANCE[dtype] * largest:  # nor if it is no number
        raise RuntimeError(f"its results are {error:.0e} away from those of matrices")
    _stood.add(trial)


def _attend(device: Device, dtype: mx.Dtype) -> mx.array:
    p, dims = replace(PROBLEM, dtype=dtype), (PROBLEM.head_dim, PROBLEM.value_dim)
    shape = (p.batch, *p.spatial, p.heads)
    arrays = [
        mx.random.normal((*shape, dims[0]), key=mx.random.key(seed)).astype(dtype)
        for seed in range(3)
    ]
    plan = lay_out(p, device, dims, scale=p.scale)
    shapes = [(*shape, dims[1]), (*shape, 2)]
    out, _ = kernels.launch("attention_forward", plan, arrays, shapes)
    return out.astype(mx.float32)

"""Threadgroup memory on CUDA: what a launch asks MLX for is what MLX asks CUDA for, and fits."""

import numpy as np

from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu.device import machine
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.problem import DTYPES, Problem

FUNCTIONS = ("forward", "backward", "qk", "qk_backward", "av", "av_backward")
USUAL = 48 * 1024  # MLX has CUDA raise this limit for slabs that are larger by themselves


def plans(problem):
    return [s.plan for op in FUNCTIONS for s in program(op, problem, machine("cuda")).steps]


def test_a_launch_that_was_refused():
    """Of 45,056 bytes of slabs and 6,656 beside them an H200 launched nothing."""
    hood = Neighborhood.of(3, (3, 5, 5))
    problem = Problem(hood, 1, (4, 10, 11), 2, 2, 24, 24, 1.0, DTYPES[0], has_rpb=True)
    crossing = [p for p in plans(problem) if p.template.slab_bytes + p.memory_beside_slabs > USUAL]
    assert crossing and all(plan.memory > USUAL for plan in crossing)


def test_launches_fit():
    rng = np.random.default_rng(0)
    processor = machine("cuda").processor
    most, cached = processor.memory_bytes, processor.memory_bytes - processor.spare_bytes
    raised = shared = 0
    for _ in range(250):
        rank = int(rng.integers(1, 4))
        kernel = tuple(int(k) for k in rng.integers(1, (64, 14, 8)[rank - 1], rank))
        spatial = tuple(k + int(rng.integers(0, 40)) for k in kernel)
        head_dim, value_dim = (int(rng.choice((8, 24, 32, 64, 128, 256))) for _ in range(2))
        heads, dtype = int(rng.integers(1, 9)), DTYPES[rng.integers(3)]
        problem = Problem(
            Neighborhood.of(rank, kernel),
            *(2, spatial, heads, heads, head_dim, value_dim, 1.0, dtype, bool(rng.integers(2))),
        )
        for plan in plans(problem):
            slabs = plan.template.slab_bytes * plan.template.buffers
            assert plan.memory >= slabs
            assert plan.memory + plan.memory_beside_slabs <= most
            assert plan.memory > USUAL or plan.memory + plan.memory_beside_slabs <= USUAL
            raised += plan.memory > slabs
            if plan.resident > 2 and plan.core.parts == 1 and not plan.template.bins:
                # They leave the cache its share.
                own = plan.memory + plan.memory_beside_slabs + processor.reserved_bytes
                assert plan.resident * own <= cached
                shared += 1
    assert raised > 5 and shared > 100

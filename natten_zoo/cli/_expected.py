"""How long `natten-zoo doctor` should take on an M1: by the costs that the GPU tier chooses by.

A bound for what is timed, forward and with gradients; and a second for each kernel that is built,
the longest that was reported of Apple's compiler for sources as long as these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..ops.gpu.dense_cost import FUSED_DIMS, FUSED_METAL, KERNELS_METAL, UNFUSED_METAL, keys_seen
from ..ops.problem import Problem
from ..ops.pure.tiling import tiling
from . import _diagnosis as diagnosis

CORE_CYCLES = 8 * 1.278e9  # of all cores of an M1, a second
CALL = 1e-3  # seconds that any call takes, however small
BUILD = 1.0
KERNELS = 100  # that the samples and the packaged model need; tests/cli/test_doctor.py counts them


def seconds(rounds: int) -> float:
    """Of all samples and timings of the Metal tier."""
    calls = rounds + 2  # two to warm up
    timed = sum(sum(_pass(*call)) + 2 * CALL for call in _calls())
    judged = len(diagnosis.SAMPLES) * len(diagnosis.TOLERANCE) * 0.1  # the reference, on the CPU
    return calls * timed + judged + KERNELS * BUILD


def _calls() -> Iterator[tuple[Problem, str]]:
    """What is timed, and which way."""
    for name in diagnosis.TIMED:
        sample, batch = diagnosis.SAMPLES[name], diagnosis.BATCH["fast_metal"]
        for way in diagnosis.ways("fast_metal"):
            yield sample.problem("float16", batch), way
    for sample, _ in diagnosis.PUBLISHED.values():
        yield sample.problem("float32", 1), "fast_metal"


def _pass(problem: Problem, way: str) -> tuple[float, float]:
    """Seconds forward and with gradients."""
    costs, keys = KERNELS_METAL, keys_seen(problem)
    if way == "pure":  # products of whole matrices, tile by tile
        costs, keys = UNFUSED_METAL, tiling(problem).keys
    if way == "dense mask":
        keys = math.prod(problem.spatial)
        costs = FUSED_METAL if problem.head_dim in FUSED_DIMS else UNFUSED_METAL
    pairs = problem.batch * problem.heads * math.prod(problem.out) * keys
    forward, both = (pairs * cost.of(problem.head_dim) / CORE_CYCLES for cost in costs)
    return forward, both

"""What MLX's own attention to all keys costs on a GPU, beside the kernels of metal/.

A window that covers its map, or nearly, leaves the kernels nothing to save, and MLX's attention
needs no window. Costs are linear in the channels of a row and of each key that is multiplied: of
all keys by MLX, by the kernels of those that a team's queries see together. Where a launch has too
little work for a GPU both are slower than that, and nearly alike.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from .. import dense
from ..problem import Problem
from .device import Device

SMALL_MAP = 64  # tokens; at 7x7 the kernels are up to 3 times as fast as MLX's attention (H100)
FUSED_DIMS = (64, 72, 80, 96, 128)  # channels that MLX's attention for Metal has a kernel for
M5 = 17  # generation of Apple's GPUs from which MLX multiplies on neural accelerators


class Cost(NamedTuple):
    """Of a key for a query and head: a number, and one for each channel.

    Cycles of a core of an Apple GPU; on CUDA picoseconds of an H100. Only ratios are used.
    """

    fixed: float
    channel: float

    def of(self, dim: int) -> float:
        """With so many channels."""
        return self.fixed + self.channel * dim


class Costs(NamedTuple):
    """Forward, and forward with the gradients."""

    forward: Cost
    both: Cost


# Metal. The kernels: as scripts/kernel_cost.py counts them at head_dim 64 and 128. MLX's: its fused
# kernel at 85 % of the arithmetic peak, which metal-flash-attention measures on an M1, and a byte
# of mask; the gradients through products of whole matrices at 90 % of the peak of matrices, the
# logits passing memory (6.7 bytes a clock and core).
KERNELS_METAL = Costs(Cost(0, 0.025), Cost(0, 0.123))
FUSED_METAL = Costs(Cost(0.03, 0.0184), Cost(4.0, 0.0763))
UNFUSED_METAL = Costs(Cost(1.8, 0.0218), Cost(4.0, 0.0763))
FUSED_M5 = Costs(Cost(0.03, 0.005), Cost(4.0, 0.02))  # 55 TFLOPS instead of 15 (mlx PR 3838)
UNFUSED_M5 = Costs(Cost(1.8, 0.006), Cost(4.0, 0.02))

# CUDA, measured on an H100 and an H200 (docs/kernels.md; MLX 0.32.4). cuDNN needs float16 or
# bfloat16; in float32 all logits pass memory. A mask takes it 5 ps a key, however few channels.
KERNELS_CUDA = Costs(Cost(1, 0.012), Cost(2, 0.08))  # of large windows: head_dim 128, K 80x80
KERNELS_CUDA_FLOAT32 = Costs(Cost(0, 0.156), Cost(0, 0.77))
WHOLE_CUDA = Costs(Cost(0.3, 0.0067), Cost(1, 0.025))
MASKED_CUDA = Costs(Cost(5, 0.007), Cost(15, 0.03))
FLOAT32_CUDA = Costs(Cost(11, 0.01), Cost(25, 0.04))


@lru_cache(maxsize=4096)
def why_dense(problem: Problem, device: Device) -> str | None:
    """Why MLX's attention to all keys is taken for a problem; None if the kernels are.

    It has to be cheaper both ways, forward and with the gradients: nobody says beforehand which it
    will be.
    """
    tokens = math.prod(problem.spatial)
    if tokens <= SMALL_MAP or dense.why_not(problem):
        return None
    dim = max(problem.head_dim, problem.value_dim)
    ours, theirs = _kernels(problem, device), _dense(problem, device)
    seen = keys_seen(problem)
    forward, both = (
        b.of(dim) * tokens / (a.of(dim) * seen) for a, b in zip(ours, theirs, strict=True)
    )
    if max(forward, both) >= 1:
        return None
    return (
        f"MLX's attention to all {tokens} keys should take {forward:.0%} of its time, "
        f"{both:.0%} with gradients"
    )


def keys_seen(problem: Problem) -> float:
    """Keys that neighboring queries see together: on average one more on an axis than each."""
    hood, seen = problem.neighborhood, 1.0
    for axis, length in enumerate(problem.spatial):
        group = -(-length // hood.dilation[axis])
        seen *= min(float(hood.windows(axis, length)[1].mean()) + 1, group)
    return seen


def _kernels(problem: Problem, device: Device) -> Costs:
    if device.platform != "cuda":
        return KERNELS_METAL
    return KERNELS_CUDA_FLOAT32 if problem.dtype == mx.float32 else KERNELS_CUDA


def _dense(problem: Problem, device: Device) -> Costs:
    is_float32 = problem.dtype == mx.float32
    if device.platform == "cuda":
        whole = problem.neighborhood.covers(problem.spatial)
        return FLOAT32_CUDA if is_float32 else WHOLE_CUDA if whole else MASKED_CUDA
    fused = problem.head_dim == problem.value_dim and problem.head_dim in FUSED_DIMS
    if device.apple_generation >= M5 and not is_float32:
        return FUSED_M5 if fused else UNFUSED_M5
    return FUSED_METAL if fused else UNFUSED_METAL

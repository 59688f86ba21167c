"""Fast math: what it does to a kernel that relies on infinities, and that ours do not."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.ops import Neighborhood
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import install, metal_kernel, options
from tests.ops.gpu.problems import case_of, check_attention, worst

BEGIN = "uint i = thread_position_in_grid.x;\n"


def run(body: str, values: list[float], math_mode: str = "safe") -> list[float]:
    mode = {"math_mode": math_mode}
    kernel = metal_kernel("math", ["a"], ["b"], BEGIN + body, compile_options=mode)
    (b,) = kernel(
        inputs=[np.array(values, np.float32)],
        output_shapes=[(len(values),)],
        output_dtypes=["float32"],
        grid=(len(values), 1, 1),
        threadgroup=(32, 1, 1),
    )
    return b.tolist()


def test_fast_math_takes_no_notice_of_nan() -> None:
    body, values = "b[i] = isnan(a[i]) ? 1.0f : 0.0f;", [0.0, float("nan")] * 8
    assert run(body, values) == [0.0, 1.0] * 8
    assert run(body, values, math_mode="fast") == [0.0] * 16
    with options(fast_math=True):
        assert run(body, values) == [0.0] * 16


HOODS = {
    "1d causal": (Neighborhood.of(1, 7, is_causal=True), (23,)),
    "2d dilated": (Neighborhood.of(2, (3, 5), dilation=(2, 1)), (11, 13)),
    "2d strided": (Neighborhood.of(2, 4, stride=2, window_stride=3), (9, 14)),
    "3d causal": (Neighborhood.of(3, 3, is_causal=(True, False, True)), (5, 6, 4)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "2d strided" else [pytest.mark.slow]) for n in HOODS],
)
def test_our_kernels_survive(name: str) -> None:
    hood, size = HOODS[name]
    problem = Problem(hood, 1, size, 2, 1, 12, 12, 0.3, mx.float32, has_rpb=True)
    with install(fast_math=True):
        assert worst(check_attention(case_of(problem)), mx.float32) is None

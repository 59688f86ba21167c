"""Neural accelerators multiply where a device was seen to do it right, and nowhere else."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import mlx.core as mx
import pytest

from natten_zoo import ops
from natten_zoo.metal import MATRIX, NAX, SCALAR_4
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import device as devices
from natten_zoo.ops.gpu.device import Device, has_accelerators, machine, use_device
from natten_zoo.ops.gpu.programs import program, usable
from natten_zoo.ops.problem import Problem
from tests import metal_emulator
from tests.metal_emulator.fixtures import toolchain  # noqa: F401

from .problems import case_of, check_attention, worst

UNIQUE = itertools.count()


def problem(dtype: mx.Dtype, head_dim: int = 64) -> Problem:
    d = head_dim
    return Problem(Neighborhood.of(2, 5), 1, (20, 20), 1, 1, d, d, d**-0.5, dtype)


def m5() -> Device:
    """Of which nothing is known yet."""
    return replace(
        machine("fast_metal"), generation=f"applegpu_g17s {next(UNIQUE)}", cores=(NAX, MATRIX)
    )


def test_an_m5_multiplies_with_them(toolchain):  # noqa: F811
    one, device = problem(mx.float16), m5()
    with metal_emulator.install(), use_device(device), metal_emulator.record() as launches:
        assert worst(check_attention(case_of(one)), mx.float16) is None
        assert gpu.cores() == {"nax": "multiplies", "matrix": "multiplies"}
    assert usable(device) == device
    used = [launch for launch in launches if launch.counts.threads > 256]
    assert [launch.counts.tensor_multiplies > 0 for launch in used] == [
        True, False,  # the trial, and what it is held against
        True, True, True,
    ]  # fmt: skip


def test_another_layout_is_noticed(toolchain, caplog):  # noqa: F811
    """Elements lie elsewhere on another generation: products are wrong, and matrices multiply."""
    dtype = mx.bfloat16
    one, device = problem(dtype), m5()
    x = mx.random.normal((1, 20, 20, 1, 64)).astype(dtype)
    with (
        metal_emulator.install(tensor_layout=1),
        use_device(device),
        caplog.at_level(logging.WARNING, "natten_zoo"),
    ):
        for _ in range(2):
            assert worst(check_attention(case_of(one)), dtype) is None
        explained = ops.explain(ops.na2d, x, x, x, 5)[0]
        cores = gpu.cores()
    assert usable(device).cores == (MATRIX,)
    assert explained.tier == "fast_metal"
    assert "away from those of matrices" in explained.reasons["core nax"]
    assert "away from those of matrices" in cores["nax"] and cores["matrix"] == "multiplies"
    assert len(caplog.records) == 1


def test_without_its_header_matrices_multiply(toolchain):  # noqa: F811
    one, device = problem(mx.float16), m5()
    with metal_emulator.install(has_tensors=False), use_device(device):
        assert worst(check_attention(case_of(one)), mx.float16) is None
        assert "Unable to build" in gpu.cores()["nax"]
    assert usable(device).cores == (MATRIX,)


def test_few_keys_are_for_single_lanes():
    device = replace(m5(), cores=(NAX, SCALAR_4, MATRIX))
    for kernel_size, core in ((3, SCALAR_4), (5, SCALAR_4), (7, NAX)):
        one = replace(problem(mx.float16, 32), neighborhood=Neighborhood.of(2, kernel_size))
        steps = program("forward", replace(one, batch=64), device).steps
        assert [step.plan.core for step in steps] == [core]


def test_float32_keeps_its_precision():
    steps = program("forward", problem(mx.float32), m5()).steps
    assert [step.plan.core for step in steps] == [MATRIX]
    steps = program("forward", problem(mx.float32), replace(m5(), core=NAX)).steps
    assert [step.plan.core for step in steps] == [MATRIX]


@pytest.mark.parametrize(
    ("generation", "macos", "expected"),
    [
        ("applegpu_g17g", (26, 2), True),
        ("applegpu_g17s", (27,), True),
        ("applegpu_g17s", (26, 1), False),
        ("applegpu_g16s", (26, 2), False),
        ("applegpu_g17p", (26, 4), False),  # a phone before its own
        ("applegpu_g18p", (26, 4), True),
        ("", (26, 2), False),
        ("sm_90", (), False),
    ],
)
def test_which_devices_have_them(monkeypatch, generation, macos, expected):
    assert has_accelerators(generation, macos) == expected
    monkeypatch.setattr(devices, "_generation", lambda: generation)
    monkeypatch.setattr(devices, "_macos", lambda: macos)
    assert (NAX in machine.__wrapped__("fast_metal").cores) == expected

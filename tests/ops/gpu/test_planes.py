"""Slabs in planes of eight channels, as core_hopper.h reads them, with a core of the emulator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import mlx.core as mx
import pytest

from natten_zoo import metal as kernels
from natten_zoo.metal import HOPPER, TENSORS, Core
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu import device as devices
from natten_zoo.ops.gpu.device import Device, Processor, current, use_device
from natten_zoo.ops.gpu.params import padded
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.gpu.shapes import fragments, slabs
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import emulator
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401
from tests.ops.gpu.problems import (
    ATTENTION,
    Case,
    Family,
    case_of,
    check_attention,
    most_alike,
    random_case,
    worst,
)

PLANES = Core("planes", 32, rows=16, tokens=64, threads=64, depth=64, on_trial=True, plane=73)
TEXT = Path(__file__).with_name("core_planes.h").read_text()
FAMILIES = (
    Family(1, mx.float16, 16, 24, False),  # values are wider
    Family(2, mx.bfloat16, 40, 20, False),
    Family(2, mx.float16, 64, 64, True, (3, 4)),
    Family(3, mx.float16, 64, 8, False),
)


@contextmanager
def in_planes(buffers: int = 1) -> Iterator[Device]:
    """A device whose core has slabs in planes, and room for so many of them in the emulator, too.

    Its text is not among the package's.
    """
    package = kernels.source

    def source(name: str) -> str:
        return TEXT if name == "core_planes.h" else package(name)

    room = buffers * 30 * 1024
    one = Processor(registers=64 * 1024, memory_bytes=room, spare_bytes=0, reserved_bytes=0)
    with (
        mock.patch.object(kernels, "source", source),
        mock.patch.object(emulator, "THREADGROUP_MEMORY", room + 2048),
        use_device(replace(current(), core=PLANES, processor=one)) as device,
    ):
        yield device


@pytest.fixture
def planes(metal):  # noqa: F811
    with in_planes() as device:
        yield device


@pytest.mark.parametrize("alike", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.rank}d-{f.head_dim}")
def test_planes(planes, family, alike):
    cases = [random_case(family, 7 * seed) for seed in range(12)]
    for case in most_alike(cases, ATTENTION)[:4] if alike else cases:
        wrong = worst(check_attention(case), family.dtype)
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"


LARGE = (
    ((64,), (168,)),
    ((15, 16), (39, 46)),
    ((2, 8, 13), (2, 8, 24)),  # slabs that are cut along the rows
    ((2, 8, 5), (2, 8, 5)),  # every query sees every key
)


def large_case(kernel: tuple[int, ...], spatial: tuple[int, ...]) -> Case:
    """A plain problem over several slabs."""
    hood = Neighborhood.of(len(kernel), kernel)
    return case_of(Problem(hood, 1, spatial, 1, 1, 64, 64, 0.1, mx.float16))


@pytest.mark.parametrize(
    "kernel, spatial, buffers",
    [
        (*LARGE[0], 1),
        (*LARGE[0], 2),
        *(pytest.param(*sizes, 1, marks=pytest.mark.slow) for sizes in LARGE[1:]),
    ],
)
def test_fragments_that_end_beyond_their_slab(metal, kernel, spatial, buffers):  # noqa: F811
    """They begin wherever a team's tokens do, and read what lies behind a plane: numbers."""
    with in_planes(buffers) as device, use_device(replace(device, enough_threadgroups=1)):
        found = check_attention(large_case(kernel, spatial))
        plan = program("forward", large_case(kernel, spatial).problem, current()).steps[0].plan
    assert worst(found, mx.float16) is None, found
    assert plan.template.buffers == buffers


def cores(problem: Problem, device: Device) -> list[Core]:
    return [
        s.plan.core for op in ("forward", "backward") for s in program(op, problem, device).steps
    ]


@pytest.fixture
def h100(monkeypatch) -> Device:
    monkeypatch.setattr(devices, "_generation", lambda: "sm_90")
    return devices.machine.__wrapped__("cuda")


def test_wgmma_is_for_long_walks_of_16_bits(h100, monkeypatch):
    large = Neighborhood.of(2, 80)
    problem = Problem(large, 1, (256, 256), 24, 24, 128, 128, 0.1, mx.float16)
    assert cores(problem, h100) == [HOPPER] * 3
    small = replace(problem, neighborhood=Neighborhood.of(2, 7), head_dim=32, value_dim=32)
    for other in (small, replace(problem, dtype=mx.float32), replace(problem, value_dim=160)):
        assert HOPPER not in cores(other, h100)
    assert cores(replace(problem, has_rpb=True), h100)[1] in TENSORS  # which sums per position
    assert not {s.plan.core for s in program("qk", problem, h100).steps} & {HOPPER}
    forced = replace(h100, core=HOPPER)  # wherever it can
    assert cores(small, forced) == [HOPPER] * 3
    assert cores(replace(small, has_rpb=True), forced)[1].name == "tensor"
    assert cores(replace(small, value_dim=160), forced)[0].name == "tensor"
    assert program("qk", small, forced).steps[0].plan.core.name == "tensor"
    monkeypatch.setattr(devices, "_generation", lambda: "sm_80")
    assert devices.machine.__wrapped__("cuda").cores == TENSORS


@pytest.mark.parametrize("kernel", [(1, 2000, 9), (2, 40, 80), (3, 9, 30), (3, 3, 100)])
@pytest.mark.parametrize("plane", [129, 73])
def test_fragments_end_inside_planes(kernel, plane):
    """What a fragment has beyond the last row of a slab must still be memory of its own."""
    rank, *sizes = kernel
    axes = padded((sizes * 2)[:rank])
    core = replace(HOPPER, plane=plane)
    for shape in fragments(rank, axes, core, False):
        reach = slabs(rank, axes, (1, 1, 1), core, shape, (1, 1, 2), plane).reach
        last = (shape.high - 1) * reach[2] + 8 if rank > 1 else core.tokens
        assert math.prod(reach) <= plane and last <= plane

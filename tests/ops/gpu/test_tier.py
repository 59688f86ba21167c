"""The GPU tier as a tier: limits, falling back, schedules, and whole models through it."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import metal as sources
from natten_zoo import ops
from natten_zoo.metal import MATRIX, MATRIX_16, MATRIX_M1, SCALAR_4, SCALAR_8, TENSOR_16
from natten_zoo.models.nat import NAT, NATConfig
from natten_zoo.ops import Neighborhood, backend, gpu
from natten_zoo.ops.gpu import device as devices
from natten_zoo.ops.gpu import kernels
from natten_zoo.ops.gpu.device import current, machine, platform, use_core, use_device
from natten_zoo.ops.gpu.plan import MAX_DIM
from natten_zoo.ops.gpu.programs import program, proven
from natten_zoo.ops.problem import Problem
from tests import metal_emulator
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import (
    ATTENTION,
    FAMILIES,
    Case,
    case_of,
    check_attention,
    check_unfused,
    random_cases,
    worst,
)

UNIQUE = itertools.count()  # of devices: what is found out about one does not hold for another


def problem(kernel_size, spatial, *, dtype=mx.float32, head_dim=8, has_rpb=False, **kwargs):
    hood = Neighborhood.of(len(spatial), kernel_size, **kwargs)
    return Problem(hood, 1, spatial, 1, 1, head_dim, head_dim, head_dim**-0.5, dtype, has_rpb)


@pytest.mark.parametrize(
    ("kernel_size", "spatial", "dtype", "head_dim"),
    [
        (127, (150,), mx.float16, 16),
        (15, (16, 17), mx.float16, 8),
        ((14, 3), (20, 4), mx.float32, 8),
        pytest.param(11, (11, 11, 11), mx.float16, 8, marks=pytest.mark.slow),
        (3, (9,), mx.float32, 256),
    ],
)
def test_extremes(metal, kernel_size, spatial, dtype, head_dim):  # noqa: F811
    one = problem(kernel_size, spatial, dtype=dtype, head_dim=head_dim, has_rpb=head_dim < 256)
    assert worst(check_attention(case_of(one)), dtype) is None


@pytest.fixture(params=[MATRIX, SCALAR_4, SCALAR_8], ids=lambda c: f"{c.name}{c.lanes}")
def core(request):
    """Has each core multiply."""
    with use_core(request.param):
        yield request.param


@pytest.mark.parametrize("bias", [-1e31, -mx.inf])
def test_a_bias_never_reaches_beyond_a_window(metal, core, bias):  # noqa: F811
    one = problem(3, (20,), has_rpb=True)
    x = mx.random.normal((1, 20, 1, 8), key=mx.random.key(0))
    out, *_ = gpu.forward(one, x, x, x, mx.full((1, 5), bias), None)
    assert mx.allclose(out[0, 5], x[0, 4:7].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("changes", [{"order": 1}, {"order": 2}, {"fast_math": True}], ids=str)
@pytest.mark.parametrize("family", [FAMILIES[i] for i in (0, 4, 9, 11, 14)], ids=str)
def test_no_schedule_and_no_fast_math_matters(toolchain, family, changes):  # noqa: F811
    with metal_emulator.install(**changes):
        # With the kernels that test_random builds, but for those of fast math.
        for case in itertools.islice(
            random_cases(family, FAMILIES.index(family), 28, ATTENTION), 4
        ):
            assert worst(check_attention(case), family.dtype) is None


def test_the_same_bits_in_every_schedule(toolchain, core):  # noqa: F811
    case = case_of(problem((3, 5), (9, 11), head_dim=16, has_rpb=True))
    results = []
    for order in (0, 1, 2):
        with metal_emulator.install(order=order):
            results.append([np.array(x) for x in gradients(case)])
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)


def gradients(case: Case) -> list[mx.array]:
    given = (case.query, case.key, case.value, case.rpb, case.lengths)
    out, lse, stats = gpu.forward(case.problem, *given)
    return [out, lse, *gpu.backward(case.problem, *given, out, stats, out, lse)]


def test_an_empty_batch(metal):  # noqa: F811
    x = mx.zeros((0, 8, 8, 2, 8))
    rpb = mx.zeros((2, 5, 5))
    with ops.use_backend("fast_metal"):
        out = ops.na2d(x, x, x, 3, rpb=rpb)
        assert out.shape == x.shape
        assert mx.grad(lambda b: ops.na2d(x, x, x, 3, rpb=b).sum())(rpb).shape == rpb.shape


def test_what_lies_outside_a_sample_is_never_read(metal, core):  # noqa: F811
    hood = Neighborhood.of(1, 3)
    one = Problem(hood, 1, (20,), 1, 1, 8, 8, 0.3, mx.float32, has_lengths=True)
    case = case_of(one, lengths=mx.array([[9]], mx.int32))
    clean = gradients(case)
    for x in (case.query, case.key, case.value):
        x[:, 9:] = mx.nan
    for x, y in zip(clean, gradients(case), strict=True):
        if x is not None:
            np.testing.assert_array_equal(np.array(x)[:, :9], np.array(y)[:, :9])
            assert not np.isnan(np.array(y)).any()


@pytest.mark.parametrize(("dtype", "offset"), [(mx.float32, 2), (mx.float16, 1), (mx.float16, 6)])
def test_slices_that_begin_anywhere(metal, core, dtype, offset):  # noqa: F811
    case = case_of(problem((3, 5), (9, 11), dtype=dtype, head_dim=16, has_rpb=True))
    shifted = {
        name: off_boundary(getattr(case, name), offset) for name in ("query", "key", "value")
    }
    for checker in (check_attention, check_unfused):
        assert worst(checker(replace(case, **shifted)), dtype) is None
    for x, y in zip(gradients(case), gradients(replace(case, **shifted)), strict=True):
        np.testing.assert_array_equal(np.array(x), np.array(y))


def off_boundary(x: mx.array, offset: int) -> mx.array:
    """The same values, `offset` elements behind the start of an allocation."""
    flat = mx.concatenate([mx.zeros(offset, x.dtype), x.reshape(-1)])
    mx.eval(flat)
    return flat[offset:].reshape(x.shape)


def test_a_new_image_size_builds_nothing(metal):  # noqa: F811
    def templates(size: int) -> set:
        one = problem(3, (size, size), dilation=1 + size % 3)
        programs = [program(op, one, current()) for op in ("forward", "backward")]
        return {step.plan.template.arguments for p in programs for step in p.steps}

    for size, dilated in ((12, False), (13, True)):
        others = (templates(size + 3 * i + dilated * j) for i in range(1, 4) for j in range(2))
        assert set().union(*others) == templates(size)


@pytest.fixture(
    params=[
        RuntimeError("[metal::Device] Unable to build metal library from source"),
        # A pipeline that allows fewer threads than are asked for.
        ValueError("[CustomKernel] Thread group size (256) is greater than maximum allowed (64)."),
    ],
    ids=["not built", "too few threads"],
)
def no_kernel(request, monkeypatch):
    """A device on which nothing can be built, or launched: both of MLX's errors."""

    def refuse(*args, **kwargs):
        raise request.param

    monkeypatch.setattr(kernels, "_function", refuse)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    with use_device(replace(current(), generation=f"without kernels {next(UNIQUE)}")):
        yield


def test_falls_back_once_and_says_so_once(no_kernel, caplog):
    x = mx.random.normal((1, 9, 2, 8))
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        first, second = (ops.explain(ops.na1d, x, x, x, 3) for _ in range(2))
    assert [e.tier for e in first] == ["fast_metal", "pure"]
    assert "cannot be built" in first[1].reasons["fast_metal"]
    assert [e.tier for e in second] == ["pure"]
    assert "cannot be built" in second[0].reasons["fast_metal"]
    assert len(caplog.records) == 1


def test_a_forced_tier_does_not_fall_back(no_kernel):
    x = mx.random.normal((1, 9, 2, 8))
    with ops.use_backend("fast_metal"):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot be built"):
                ops.na1d(x, x, x, 3)


@pytest.mark.parametrize(
    ("device", "bounded", "tier"),
    [
        ({"most_threads": 64}, True, "fast_metal"),  # fewer, unless its compiler is told
        ({"takes_bounds": False}, False, "fast_metal"),
        ({"takes_bounds": False, "most_threads": 64}, True, "pure"),  # neither helps
        ({"refuses": "attention_forward"}, True, "pure"),
    ],
    ids=str,
)
def test_the_compiler_is_told_how_many_threads_there_are(toolchain, device, bounded, tier):  # noqa: F811
    generation = f"particular {next(UNIQUE)}"
    x = mx.random.normal((1, 16, 16, 2, 8))
    with (
        metal_emulator.install(**device),
        use_device(replace(current(), generation=generation, enough_threadgroups=1)),
        metal_emulator.record() as launches,
    ):
        done = ops.explain(ops.na2d, x, x, x, 3)
    assert done[-1].tier == tier
    assert ((platform() or "fast_metal", generation) not in kernels._unbounded) == bounded
    assert all(np.prod(launch.threadgroup) > 64 for launch in launches)
    with use_device(replace(current(), generation=generation)):
        plan = program("forward", problem(3, (16, 16)), current()).steps[0].plan
    assert ("max_total_threads_per_threadgroup" in metal_text(plan)) == bounded


def metal_text(plan) -> str:
    return kernels.text("attention_forward", "fast_metal", plan.core, kernels.told(plan))["header"]


def test_bounds_are_never_one_simdgroup():
    assert all(core.threads >= 64 for core in (MATRIX, MATRIX_16, SCALAR_4, SCALAR_8))


def test_without_single_lanes_matrices_multiply(metal, monkeypatch, caplog):  # noqa: F811
    """A device that cannot build one kind of kernel is given the other, for good."""
    build = kernels._function

    def refuse(name, platform, core, *told):
        if not core.whole:
            raise RuntimeError("[metal::Device] Unable to load kernel")
        return build(name, platform, core, *told)

    monkeypatch.setattr(kernels, "_function", refuse)
    one = problem(3, (16, 16), dtype=mx.float16)
    device = replace(current(), enough_threadgroups=1, generation=f"no lanes {next(UNIQUE)}")
    with use_device(device), caplog.at_level(logging.WARNING, "natten_zoo"):
        assert program("forward", one, device).steps[0].plan.core is SCALAR_4
        for _ in range(2):
            assert worst(check_attention(case_of(one)), mx.float16) is None
        assert proven("forward", one, device).steps[0].plan.core is MATRIX
        assert gpu.why_not(one) is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("head_dim", "batch", "has_rpb", "dtype", "cores"),
    [
        (16, 64, False, mx.float16, {SCALAR_4, SCALAR_8}),
        (16, 64, False, mx.float32, {SCALAR_4, SCALAR_8}),
        (32, 64, False, mx.float16, {SCALAR_4, SCALAR_8, MATRIX}),  # backward holds more arrays
        (32, 64, False, mx.float32, {SCALAR_4, MATRIX}),  # and float32 twice as much of them
        (64, 64, False, mx.float16, {SCALAR_8, MATRIX}),
        (80, 64, False, mx.float16, {MATRIX}),
        (32, 1, False, mx.float16, {MATRIX}),  # a lane for each query would leave the GPU idle
        (32, 64, True, mx.float16, {SCALAR_4, MATRIX}),  # sums per relative position
    ],
)
def test_who_multiplies(head_dim, batch, has_rpb, dtype, cores):
    one = problem(3, (20, 20), head_dim=head_dim, has_rpb=has_rpb, dtype=dtype)
    one = replace(one, batch=batch)
    device = machine(None)  # plans of Metal
    steps = [step for op in ("forward", "backward") for step in program(op, one, device).steps]
    assert {step.plan.core for step in steps} == cores
    products = [step for op in ("qk", "av_backward") for step in program(op, one, device).steps]
    assert {step.plan.core for step in products} == {MATRIX}


@pytest.mark.parametrize("dtype", (mx.float16, mx.float32), ids=str)
def test_no_simdgroup_has_more_than_128_channels(dtype):
    """Loops over channels are written out: bodies of more are long to compile."""
    for head_dim in range(8, MAX_DIM + 1, 8):
        one = replace(problem(3, (20, 20), head_dim=head_dim, dtype=dtype), batch=64)
        for op in ("forward", "backward", "qk", "av", "av_backward"):
            for step in program(op, one, machine(None)).steps:
                core = step.plan.core
                assert core.padded(head_dim) <= 128 * core.parts, (head_dim, step.kernel)


@pytest.mark.parametrize(
    ("generation", "core"),
    [("applegpu_g13g", MATRIX_M1), ("applegpu_g14s", MATRIX_M1), ("applegpu_g15p", MATRIX),
     ("applegpu_g17g", MATRIX), ("", MATRIX)],
)  # fmt: skip
def test_who_rounds_weights_to_bfloat(monkeypatch, generation, core):
    monkeypatch.setattr(devices, "_generation", lambda: generation)
    assert machine.__wrapped__("fast_metal").cores[-1] == core
    assert f"#define NA_BFLOAT {int(core.has_bfloat)}" in sources.header("metal", core)


def test_a_plan_is_of_its_device_alone():
    """Nothing is forgotten between devices, and nothing is kept from one for another."""
    one = replace(problem(3, (20, 20)), batch=64)
    plain = machine(None)
    devices = [
        plain,
        replace(plain, core=MATRIX),
        replace(plain, cores=(MATRIX,)),
        replace(plain, enough_threadgroups=10**9),
        replace(plain, slab_bytes=8192),
        replace(plain, platform="cuda", generation="another", cores=(TENSOR_16,)),
    ]
    plans = [program("forward", one, device).steps[0].plan for device in devices]
    assert [p.core for p in plans] == [SCALAR_4, MATRIX, MATRIX, MATRIX, SCALAR_4, TENSOR_16]
    assert plans[4].template.slab_bytes == 8192
    assert plans[3].teams < plans[1].teams
    again = [program("forward", one, replace(device)).steps[0].plan for device in devices]
    assert all(x is y for x, y in zip(plans, again, strict=True))


def test_a_device_is_of_its_block():
    plain = current()
    with use_core(MATRIX) as device:
        assert current() is device and device == replace(plain, core=MATRIX)
    assert current() is plain


def test_says_why_not(metal):  # noqa: F811
    assert gpu.why_not(problem(3, (9,))) is None
    assert "head_dim" in backend.why_not(gpu.NAME, problem(3, (9,), head_dim=MAX_DIM + 1))
    assert backend.get_support_matrix()["fast_metal"]["na3d"] == "yes"


def test_only_large_maps_go_to_mlx(metal):  # noqa: F811
    small, large = mx.zeros((1, 7, 7, 1, 128)), mx.zeros((1, 9, 9, 1, 128))
    with ops.use_backend("fast_metal"):
        assert ops.explain(ops.na2d, small, small, small, 7)[0].tier == "fast_metal"
        assert ops.explain(ops.na2d, large, large, large, 9)[0].tier == "dense"


def test_without_a_gpu_says_so():
    if platform() is None:
        assert "back-end" in gpu.why_not(problem(3, (9,)))


@pytest.mark.parametrize("dilations", [None, ((2, 1), (1,))], ids=["nat", "dinat"])
def test_models_forward_and_training_step(metal, core, dilations):  # noqa: F811
    mx.random.seed(0)
    config = NATConfig(16, (2, 1), (2, 2), kernel_size=3, dilations=dilations, num_classes=5)
    model = NAT(config)
    images, labels = mx.random.normal((2, 36, 36, 3)), mx.array([3, 1])

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(images), labels).sum()

    outcomes = []
    for tier in ("pure", "fast_metal"):
        with ops.use_backend(tier):
            value, grads = nn.value_and_grad(model, loss)(model)
            outcomes.append({"loss": value, **dict(tree_flatten(grads))})
    wanted, got = outcomes
    assert wanted.keys() == got.keys()
    for key, x in wanted.items():
        scale = max(1e-3, float(mx.abs(x).max()))
        assert float(mx.abs(x - got[key]).max()) <= 1e-4 * scale, key

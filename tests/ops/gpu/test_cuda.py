"""The CUDA build of the kernels compiles; scripts/gpu_check.py runs it where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from natten_zoo import metal
from natten_zoo.metal import (
    CONTIGUOUS,
    FLOAT32,
    HOPPER,
    INT32,
    KERNELS,
    SCALAR_4,
    SCALAR_8,
    TENSORS,
    kernel_without,
)
from natten_zoo.metal.excerpt import excerpt
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu import device as devices
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.gpu.plan import Plan, lay_out
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.problem import Problem
from tests.ops.gpu.problems import ON_HOPPER, random_case, tiles_of

QUICK = (4, 7, 10)  # of ON_HOPPER, one of each rank
TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}


def function(name: str, plan: Plan) -> str:
    """A kernel as MLX declares it for CUDA: template arguments are constants of the body."""

    def typed(array: str) -> str:
        return f"{'int' if array in INT32 else 'float' if array in FLOAT32 else 'T'}* {array}"

    constants = {k: str(v).lower() for k, v in plan.template.arguments if k != "T"}
    absent = plan.template.absent
    kernel, element = kernel_without(name, absent), TYPES[plan.template.dtype]
    arrays = [f"const {typed(x)}" for x in kernel.inputs] + [typed(x) for x in kernel.outputs]
    # MLX's compiler at run time, which has no system's headers, takes int64_t for a long long.
    arrays += [f"const long long* {x}_strides" for x in kernel.inputs if x not in CONTIGUOUS]
    space = f"{name}_{element.strip('_')}_{plan.template.rank}"
    values = "\n".join(f"  constexpr auto {k} = {v};" for k, v in constants.items())
    body = f"{values}\n{metal.body(name, absent)}"
    return (
        f"namespace {space} {{\nusing T = {element};\n"
        f"__global__ void kernel({', '.join(arrays)}) {{\n{body}\n}}\n}}\n"
    )


@pytest.fixture
def h100(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "_generation", lambda: "sm_90")
    with use_device(devices.machine.__wrapped__("cuda")):
        yield


def compiler() -> str | None:
    """nvcc: on the path, or from the wheels that .ci/run installs."""
    wheel = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(wheel))


CORES = [*TENSORS, replace(TENSORS[1], parts=2), SCALAR_4, SCALAR_8]


@pytest.mark.skipif(compiler() is None, reason="needs nvcc (pip install nvidia-cuda-nvcc)")
@pytest.mark.parametrize(
    ("rank", "core"),
    [
        pytest.param(
            rank,
            core,
            id=f"{rank}-{core.name}{core.lanes}x{core.tokens}x{core.parts}",
            marks=[] if rank == 1 + i % 3 else [pytest.mark.slow],
        )
        for i, core in enumerate(CORES)
        for rank in (1, 2, 3)
    ],
)
def test_compiles(tmp_path, rank, core):
    """Every kernel, with warnings on; those that only attend by themselves with the scalar core."""
    hood, dtype = Neighborhood.of(rank, 3), list(TYPES)[rank - 1]
    problem = Problem(hood, 1, (9,) * rank, 2, 1, 24, 12, 1.0, dtype, has_rpb=core.whole)
    device, bias = replace(current(), core=core), core.whole
    has = {"has_rpb": bias, "sums_rpb": bias, "has_lse": bias}
    layout = lay_out(problem, device, (24, 12), scale=1.0, channels=8, **has)
    assert layout.core is core
    compiles(tmp_path, [(k, layout) for k in KERNELS if core.whole or k.startswith("attention")])


@pytest.mark.skipif(compiler() is None, reason="needs nvcc (pip install nvidia-cuda-nvcc)")
@pytest.mark.parametrize(("rank", "core"), [(1, TENSORS[0]), (2, SCALAR_4), (3, HOPPER)])
def test_finer_queries_compile(tmp_path, rank, core):
    hood, finer = Neighborhood.of(rank, 3), (2,) * rank
    problem = Problem(hood, 1, (9,) * rank, 2**rank, 1, 24, 12, 1.0, mx.float16, finer=finer)
    layout = lay_out(problem, replace(current(), core=core), (24, 12), scale=1.0, channels=8)
    compiles(tmp_path, [(k, layout) for k in KERNELS if k.startswith("attention")])


@pytest.mark.skipif(compiler() is None, reason="needs nvcc (pip install nvidia-cuda-nvcc)")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=[] if i in QUICK else [pytest.mark.slow])
        for i, f in enumerate(ON_HOPPER)
    ],
    ids=str,
)
def test_hopper_compiles(tmp_path, h100, family):
    """What a GPU is given of the problems that only a Hopper GPU can compute as they are meant."""
    with tiles_of(family):
        problem = random_case(family, seed=0).problem
        joins = problem.head_dim == problem.value_dim and not problem.finer
        backward = "backward_packed" if joins else "backward"
        steps = [s for op in ("forward", backward) for s in program(op, problem, current()).steps]
    sums = [step for step in steps if step.plan.template.sums_rpb]  # of simdgroups
    assert [step for step in steps if step.plan.core is not HOPPER] == sums
    compiles(tmp_path, [(s.kernel, s.plan) for s in steps if s not in sums])
    for step in sums:
        compiles(tmp_path, [(step.kernel, step.plan)])


def compiles(folder: Path, kernels: list[tuple[str, Plan]]) -> None:
    """Kernels, each with its plan, of one core: without a warning."""
    source, core = folder / "kernels.cu", kernels[0][1].core
    bodies = "".join(function(name, plan) for name, plan in kernels)
    source.write_text("\n".join(excerpt(metal.header("cuda", core), bodies)))
    target = "90a" if core is HOPPER else "80"
    command = [str(compiler()), f"-gencode=arch=compute_{target},code=compute_{target}"]
    command += ["-std=c++17", "-ptx", "-diag-suppress=177"]
    command += [str(source), "-o", str(folder / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "warning" not in result.stderr

"""How tight the kernels are in an Apple GPU's registers, by Mesa's compiler for the M1.

    python scripts/registers.py --compiler /path/to/asahi_clc       # the table of docs/kernels.md
    python scripts/registers.py --only "forward 2-D .* matrix"      # rows that a pattern finds
    python scripts/registers.py --check docs/kernels.md             # whether its table is today's

`asahi_clc` (also: `ASAHI_CLC`) is what Mesa builds its own M1 kernels with: SPIR-V in, machine
code and statistics out. Mesa 25.0 needs a few lines more for clang's SPIR-V: entry points exported,
`shuffle_xor` taken as the instruction that it is, wide loads from threadgroup memory, spilling
allowed, `DEMAND` (half-registers before allocation) and `BLOCK` (depth, instructions) printed.

**It is not Apple's compiler.** How many registers a kernel wants tells how tight it is in a file of
128, not what Apple's allocator makes of it. Mesa keeps in registers of each thread what is the same
for a threadgroup, and has no products of 8 x 8 matrices: four multiply-adds stand for what a lane
holds of one. It also needs clang 22; with nvcc, the tensor cores' kernels are shown beside.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from natten_zoo import metal
from natten_zoo.metal import (
    CONTIGUOUS,
    FLOAT32,
    INT32,
    KERNELS,
    MATRIX,
    SCALAR_4,
    SCALAR_8,
    kernel_without,
)
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu.device import Device, machine
from natten_zoo.ops.gpu.plan import Plan
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.problem import Problem
from tests.ops.gpu import test_cuda

DIALECT = Path(__file__).with_name("registers_dialect.h").read_text()
CORES = {"chosen": None, "matrix": MATRIX, "scalar4": SCALAR_4, "scalar8": SCALAR_8}
FLAGS = (
    "-cl-std=CLC++2021 -target spirv64 -Xclang -finclude-default-header -cl-ext=+all -O2 -w "
    "-fno-slp-vectorize -fno-vectorize -fno-discard-value-names -x clcpp -c"
)


@dataclass(frozen=True)
class Use:
    """What a kernel takes.

    Attributes:
        registers: Of 32 bits that it wants, of 128 that there are.
        spilled: Words that a thread keeps in memory instead.
        loop: Instructions of the loop that multiplies, rare branches included.
        threads: That a core of an M1 holds.
    """

    registers: float
    spilled: int
    loop: int
    threads: int


def text_of(kernel: str, plan: Plan) -> str:
    """One instantiation as C++ for OpenCL, where templates can't hold threadgroup variables."""
    absent = plan.template.absent
    arrays, element = kernel_without(kernel, absent), {mx.float16: "half", mx.float32: "float"}

    def typed(x: str) -> str:
        return f"DEV {'int' if x in INT32 else 'float' if x in FLOAT32 else 'T'}* {x}"

    parameters = [f"const {typed(x)}" for x in arrays.inputs] + [typed(x) for x in arrays.outputs]
    views = [x for x in arrays.inputs if x not in CONTIGUOUS]
    parameters += [f"const constant long* {x}_strides" for x in views]
    constants = "\n".join(
        f"constexpr {type(value).__name__} {name} = {str(value).lower()};"
        for name, value in plan.template.arguments
        if name != "T"
    )
    head = metal.header("metal", plan.core, 0).replace(metal.source("dialect_metal.h"), DIALECT)
    return f"""{head}
typedef {element[plan.template.dtype]} T;
__attribute__((reqd_work_group_size({plan.threads}, 1, 1)))
kernel void {kernel}({", ".join(parameters)}, int groups_of_grid) {{
{constants}
const uint thread_index_in_threadgroup = get_local_id(0);
const uint3 threadgroup_position_in_grid = (uint3)(uint(get_group_id(0)), 0u, 0u);
const uint3 threads_per_threadgroup = (uint3)(uint(get_local_size(0)), 1u, 1u);
const uint3 threadgroups_per_grid = (uint3)(uint(groups_of_grid), 1u, 1u);
{metal.body(kernel, absent)}
}}"""


def measure(kernel: str, plan: Plan, compiler: str, clang: str = "clang-22") -> Use:
    """Compiles a kernel as its plan has it."""
    settings = {"AGX_MESA_DEBUG": "internal,shaderdb", "AGX_STUDY": "1", "AGX_BLOCKS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        source, binary, *rest = (str(Path(folder, f"k.{x}")) for x in ("clcpp", "spv", "h", "c"))
        Path(source).write_text(text_of(kernel, plan))
        subprocess.run([clang, *FLAGS.split(), source, "-o", binary], check=True)
        done = subprocess.run(
            [compiler, binary, *rest], env=os.environ | settings, capture_output=True, text=True
        )
    return parsed(done.stdout + done.stderr)


def parsed(said: str) -> Use:
    """What the compiler says."""
    instructions, products = Counter[int](), Counter[int]()
    for depth, count, rest in re.findall(r"^BLOCK \d+ depth (\d+) inst (\d+):(.*)$", said, re.M):
        instructions[int(depth)] += int(count)
        products[int(depth)] += sum(int(n) for n in re.findall(r"\bffma=(\d+)", rest))
    demands = re.findall(r"DEMAND (\d+) of", said)
    totals = re.findall(r"^SHADER-DB.*?(\d+) scratch, (\d+) threads", said, re.M)
    if not demands or not totals:
        raise SystemExit(f"the compiler said nothing of registers:\n{said[-2000:]}")
    deepest = max((d for d in products if d), key=lambda d: products[d], default=0)
    scratch, threads = map(int, totals[-1])
    return Use(max(map(int, demands)) / 2, scratch // 4, instructions[deepest], threads)


def nvcc(kernel: str, plan: Plan) -> str:
    """Registers, and words spilled, of the same for a H200's tensor cores."""
    compiler = test_cuda.compiler()
    if compiler is None:
        return "-"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "k.cu")
        head = metal.header("cuda", plan.core, plan.resident)
        source.write_text(head + test_cuda.function(kernel, plan))
        command = [compiler, "-arch=sm_90", "-std=c++17", "-cubin", "-Xptxas", "-v", "-w"]
        command += [str(source), "-o", str(Path(folder, "k.cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)))
    spilled = max(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return f"{registers} / {spilled // 4}"


@dataclass(frozen=True)
class Row:
    """A kernel on a problem; many samples, so that every core is busy."""

    kernel: str
    rank: int
    window: int
    dim: int
    dtype: mx.Dtype
    core: str

    def __str__(self) -> str:
        kernel, dtype = self.kernel.removeprefix("attention_"), str(self.dtype).rpartition(".")[2]
        return f"{kernel} {self.rank}-D K{self.window} D{self.dim} {dtype} {self.core}"

    def plan(self, device: Device) -> Plan:
        """What a device launches for it."""
        size = {1: 512, 2: 56, 3: 16}[self.rank]
        hood, d = Neighborhood.of(self.rank, self.window), self.dim
        problem = Problem(hood, 64, (size,) * self.rank, 2, 2, d, d, d**-0.5, self.dtype)
        op = "forward" if self.kernel == "attention_forward" else "backward"
        device = replace(device, longest_launch=math.inf)
        steps = program(op, problem, device).steps
        return next(step.plan for step in steps if step.kernel == self.kernel)


def rows() -> Iterator[Row]:
    """Those of the table, and each core for itself; a row of float16 before its row of float32."""
    kernels = [name for name in KERNELS if name.startswith("attention_")]
    for core, (rank, window), dim in product(CORES, ((1, 7), (2, 7), (3, 3)), (32, 64, 128, 256)):
        for kernel, dtype in product(kernels, (mx.float16, mx.float32)):
            yield Row(kernel, rank, window, dim, dtype, core)


def cells(row: Row, compiler: str, clang: str, with_nvcc: bool) -> str:
    """What is measured of a row."""
    plan = row.plan(replace(machine("fast_metal"), core=CORES[row.core]))
    use, core = measure(row.kernel, plan, compiler, clang), plan.core
    name = core.name + (f" x {core.parts}" if core.parts > 1 else "")
    name += "" if core.whole else str(core.lanes)
    found = f"{name} | {use.registers:g} / {use.spilled} | {use.loop} | {use.threads}"
    return f"{found} | {nvcc(row.kernel, row.plan(machine('cuda')))}" if with_nvcc else found


def check(table: str, compiler: str, clang: str, only: str) -> list[str]:
    """The rows of a page's table that are not today's, but for what nvcc says."""
    printed = {}
    for line in table.splitlines():
        if re.match(r"\| (forward|backward)[^|]* [123]-D K\d+ D\d+ \|", line):
            name, *found = (cell.strip() for cell in line.strip("| ").split("|"))
            printed[f"{name} float16"] = " | ".join(found[:4])
            printed[f"{name} float32"] = " | ".join(found[5:9])
    wrong = []
    for row in (row for row in rows() if row.core == "chosen" and re.search(only, str(row))):
        today, name = cells(row, compiler, clang, with_nvcc=False), str(row).rpartition(" ")[0]
        if printed.get(name) != today:
            wrong.append(f"{name}: {printed.get(name, 'missing')}, today {today}")
    return wrong


def main() -> None:
    """Prints the table, or what is wrong with a printed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiler", default=os.environ.get("ASAHI_CLC", "asahi_clc"))
    parser.add_argument("--clang", default="clang-22")
    parser.add_argument("--only", default="chosen", help="a pattern, of rows to print")
    parser.add_argument("--check", type=Path, help="a page with the table, to be held against it")
    args = parser.parse_args()
    if args.check:
        wrong = check(args.check.read_text("utf-8"), args.compiler, args.clang, args.only)
        raise SystemExit("\n".join(wrong) or 0)
    print("| kernel | float16: core | registers / spilled | loop | threads | nvcc "
          "| float32: core | registers / spilled | loop | threads | nvcc |")  # fmt: skip
    print("|---" * 11 + "|")
    found = (row for row in rows() if re.search(args.only, str(row)))
    for kernel, pair in groupby(found, key=lambda row: str(row).rsplit(" ", 2)[0]):
        both = " | ".join(cells(row, args.compiler, args.clang, with_nvcc=True) for row in pair)
        print(f"| {kernel} | {both} |", flush=True)


if __name__ == "__main__":
    main()

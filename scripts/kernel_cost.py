"""What a GPU would pay for the kernels, counted in the emulator, beside what it must pay.

    python scripts/kernel_cost.py                 # all rows, as in docs/kernels.md
    python scripts/kernel_cost.py --cases "2-D K7" --core matrix

Needs clang 19 or newer (tests/metal_emulator/README.md). For each case one head of one sample is
run through the emulated Metal kernels and counted, per query and head; natten-mlx's kernels too,
where that package is installed:

* ``lines``  bytes of the 128-byte lines that each threadgroup touches in device memory, the traffic
             below a core's cache; ``must`` is every array once
* ``local``  bytes of threadgroup memory read and written
* ``mma``    products of 8x8 matrices, and how many times those that the windows need
* ``ops``    all other arithmetic of single lanes, integers included; widening a float16 is free, as
             it is for operands of an Apple GPU's multiply-add (dougallj.github.io/applegpu)

With ``--compiler`` (see registers.py) a word that Mesa's compiler spills is charged as written to
and read from L2 once for each fragment, by every lane: at most what it may cost.

natten-mlx has its inputs transposed before it launches; the bytes of these copies, counted with two
heads, are ``copies``, and their time is added.

Cycles of a core are modelled from these and from published figures of Apple's GPUs; they
compare designs and are no measurement. ``share`` is the roofline's part of the cycles: the time of
``must``, or of the windows' multiply-adds at peak, whichever is longer.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
import numpy as np
from benchmark_contestants import import_natten_mlx
from registers import measure

from natten_zoo.metal import MATRIX, SCALAR_4, SCALAR_8, Core
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.gpu.programs import Step, program
from natten_zoo.ops.problem import Problem
from tests import metal_emulator


@dataclass(frozen=True)
class Figures:
    """A core of an Apple GPU, per clock; and what some operations count as."""

    lanes: float = 128  # operations of single lanes; multiply-adds of float32 and float16 alike
    matrix_multiply_adds: float = 102
    local_bytes: float = 64  # threadgroup memory
    cache_bytes: float = 32  # L2, a core's share
    special: float = 4  # exp2, division: at a quarter of the rate
    int_division: float = 4  # nearly all are by constants
    reduction: float = 10 * 32  # of a simdgroup: five shuffles and five operations


FIGURES = Figures()
PRODUCTS = {"attention_forward": 2, "attention_backward_query": 3, "attention_backward_key": 4}
CORES = {"matrix": MATRIX, "scalar4": SCALAR_4, "scalar8": SCALAR_8}
# name: cores, GHz, GB/s of memory.
CHIPS = {
    "M1": (8, 1.278, 68.3),
    "M2": (10, 1.398, 100.0),
    "M3": (10, 1.380, 100.0),
    "M4": (10, 1.470, 120.0),
}


@dataclass(frozen=True)
class Case:
    """One row of the table; float16."""

    name: str
    spatial: tuple[int, ...]
    kernel_size: int
    head_dim: int

    @property
    def problem(self) -> Problem:
        d, hood = self.head_dim, Neighborhood.of(len(self.spatial), self.kernel_size)
        return Problem(hood, 1, self.spatial, 1, 1, d, d, d**-0.5, mx.float16)

    def arrays(self, heads: int = 1) -> list[mx.array]:
        """Query, key, value and the output's gradient."""
        rng, shape = np.random.default_rng(0), (1, *self.spatial, heads, self.head_dim)
        return [mx.array(rng.standard_normal(shape, np.float32)).astype(mx.float16) for _ in "qkvg"]


def cases() -> Iterator[Case]:
    """The rows: windows and head_dims at which the design is judged."""
    for name, spatial, kernel in (
        ("1-D K7", (512,), 7),
        ("2-D K7", (56, 56), 7),
        ("2-D K13", (56, 56), 13),
        ("3-D K3", (16, 16, 16), 3),
        ("3-D K5", (16, 16, 16), 5),
    ):
        for head_dim in (32, 64):
            yield Case(f"{name} D{head_dim}", spatial, kernel, head_dim)


@dataclass(frozen=True)
class Cost:
    """Counts per query and head of one direction."""

    case: Case
    who: str
    direction: str
    lines: float
    local: float
    products: float
    operations: float
    copies: float = 0.0
    spilled: float = 0.0  # bytes

    @property
    def must(self) -> float:
        """Bytes of each array once, backward in two passes, and of the LSE."""
        return (4 if self.direction == "forward" else 12) * self.case.head_dim * 2 + 4

    @property
    def multiply_adds(self) -> float:
        """Of the windows alone: two products forward, seven in two passes backward."""
        times = 2 if self.direction == "forward" else 7
        return times * self.case.head_dim * self.case.problem.neighborhood.volume

    def roofline(self, bytes_per_clock: float) -> float:
        """Core-cycles that no implementation goes below."""
        return max(self.must / bytes_per_clock, self.multiply_adds / FIGURES.lanes)

    def cycles(self, bytes_per_clock: float) -> float:
        """Core-cycles: arithmetic, unless some memory takes longer."""
        products = self.products * 512 / FIGURES.matrix_multiply_adds
        compute = products + self.operations / FIGURES.lanes
        memory = max(self.must / bytes_per_clock, (self.lines + self.spilled) / FIGURES.cache_bytes)
        own = max(compute, memory, self.local / FIGURES.local_bytes)
        return own + self.copies / bytes_per_clock


def cost(case: Case, who: str, direction: str, launches: list[Any], copies: float = 0.0) -> Cost:
    """What launches add up to; those that only tried a kernel on one token do not count."""
    counts = [x.counts for x in launches if x.counts.threads > 256]

    def each(**weights: float) -> float:
        total = sum(getattr(c, name) * weight for c in counts for name, weight in weights.items())
        return total / math.prod(case.spatial)

    return Cost(
        case,
        who,
        direction,
        lines=each(device_read_lines=128, device_write_lines=128),
        local=each(threadgroup_read_bytes=1, threadgroup_write_bytes=1),
        products=each(matrix_multiplies=1),
        operations=each(
            fmas=1,
            float_operations=1,
            int_operations=1,
            special_operations=FIGURES.special,
            int_divisions=FIGURES.int_division,
            reductions=FIGURES.reduction,
            shuffles=32,
            votes=32,
        ),
        copies=copies,
    )


def ours(case: Case, core: Core | None, compiler: str | None) -> list[Cost]:
    """With the tile, and without another core the one, that many heads would get."""
    q, k, v, g = case.arrays()
    with use_device(replace(current(), enough_threadgroups=1, core=core)) as device:
        with metal_emulator.record() as forward:
            out, lse, stats = gpu.forward(case.problem, q, k, v, None, None)
        with metal_emulator.record() as backward:
            gpu.backward(case.problem, q, k, v, None, None, out, stats, g, mx.zeros(lse.shape))
    costs = []
    for direction, launches in (("forward", forward), ("backward", backward)):
        steps = program(direction, case.problem, device).steps
        spilled = sum(spills(case, step, launches, compiler) for step in steps) if compiler else 0
        costs.append(replace(cost(case, "ours", direction, launches), spilled=spilled))
    return costs


def spills(case: Case, step: Step, launches: list[Any], compiler: str) -> float:
    """Bytes per query and head. A product reads a fragment's tokens once from local memory."""
    counts = [x.counts for x in launches if step.kernel in x.name and x.counts.threads > 256]
    read = sum(c.threadgroup_read_bytes for c in counts) / math.prod(case.spatial)
    core = step.plan.core
    fragments = read / (PRODUCTS[step.kernel] * core.tokens * case.head_dim * 2)
    return fragments * core.lanes * measure(step.kernel, step.plan, compiler).spilled * 8


def natten_mlx(case: Case) -> list[Cost]:
    """The same of natten-mlx; none without it."""
    try:
        peer = import_natten_mlx()
    except ImportError:
        return []
    peer.set_backend("fast_metal")
    attention = {1: peer.na1d, 2: peer.na2d, 3: peer.na3d}[len(case.spatial)]

    def launches(arrays: list[mx.array]) -> Iterator[tuple[str, list[Any]]]:
        *qkv, g = arrays
        with metal_emulator.record() as forward:
            mx.eval(attention(*qkv, case.kernel_size))
        with metal_emulator.record() as both:
            mx.eval(mx.vjp(lambda *x: [attention(*x, case.kernel_size)], qkv, [g]))
        yield "forward", forward
        yield "backward", both[len(forward) :]

    few = replace(case, spatial=(2 * case.kernel_size,) * len(case.spatial))
    rows = 2 * math.prod(few.spatial)
    copied = {
        direction: sum(one.copied_bytes for one in done) / rows
        for direction, done in launches(few.arrays(heads=2))
    }
    return [
        cost(case, "natten-mlx", direction, done, copied[direction])
        for direction, done in launches(case.arrays())
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="part of the names of the rows to print")
    parser.add_argument("--core", choices=CORES, help="who multiplies: as the library chooses")
    parser.add_argument("--compiler", help="Mesa's asahi_clc: registers that are spilled count")
    args = parser.parse_args()
    if metal_emulator.why_not():
        raise SystemExit(metal_emulator.why_not())
    heading = "  ".join(f"{chip + ' cycles':>10} share" for chip in CHIPS)
    print(f"{'case':12} {'':10} {'':8} {'lines':>6} {'must':>5} {'local':>6} {'mma':>6} "
          f"{'waste':>5} {'ops':>7} {'copies':>6}  {heading}")  # fmt: skip
    with metal_emulator.install(count_operations=True, strict=False):
        for case in (c for c in cases() if args.cases in c.name):
            for one in (*ours(case, CORES.get(args.core), args.compiler), *natten_mlx(case)):
                print(line(one), flush=True)


def line(one: Cost) -> str:
    """A row of the table."""
    chips = []
    for cores, clock, bandwidth in CHIPS.values():
        per_clock = bandwidth / (cores * clock)
        cycles = one.cycles(per_clock)
        chips.append(f"{cycles:10.0f} {one.roofline(per_clock) / cycles:5.0%}")
    waste = one.products * 512 / one.multiply_adds
    return (
        f"{one.case.name:12} {one.who:10} {one.direction:8} {one.lines:6.0f} {one.must:5.0f} "
        f"{one.local:6.0f} {one.products:6.1f} {waste:5.2f} {one.operations:7.0f} "
        f"{one.copies:6.0f}  " + "  ".join(chips)
    )


if __name__ == "__main__":
    main()

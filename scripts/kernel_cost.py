"""What a GPU would pay for the kernels, counted in the emulator, beside what it must pay.

    python scripts/kernel_cost.py                 # all rows, as in docs/kernels.md: minutes
    python scripts/kernel_cost.py --cases "2-D K7" --core matrix
    python scripts/kernel_cost.py --core nax      # what an M5 should gain

Needs clang 19 or newer (tests/metal_emulator/README.md). For each case one head of one sample is
run through the emulated Metal kernels and counted, per query and head; natten-mlx's kernels too,
where that package is installed:

* `lines`  bytes of the 128-byte lines that each threadgroup touches in device memory, the traffic
             below a core's cache; `must` is every array once
* `local`  bytes of threadgroup memory read and written
* `mma`    products of 8x8 matrices, or as many as those of an M5's accelerators are, and how many
             times those that the windows need
* `ops`    all other arithmetic of single lanes, integers included; widening a float16 is free, as
             it is for operands of an Apple GPU's multiply-add (dougallj.github.io/applegpu)

With `--compiler` (see registers.py) a word that Mesa's compiler spills is charged as written to
and read from L2 once for each fragment, by every lane: at most what it may cost.

What is copied before a launch is `copies`, and its time is added: counted with two heads, and
with inputs that are views of one projection, as a layer has them; natten-mlx has them transposed.
The rows of `packed` are such views where they lie, and one array of gradients; beside them is
what the same would cost if each launch had its inputs copied, and gradients were joined.

Cycles of a core are modelled from these and from published figures of Apple's GPUs; they
compare designs and are no measurement. `share` is the roofline's part of the cycles: the time of
`must`, or of the windows' multiply-adds at peak of single lanes, whichever is longer. The goals:
from K 13 and in 3-D from K 5 on, with head_dim 64 and 128, 60 % of an M1's roofline forward and
50 % backward; in 2-D and 3-D a quarter of natten-mlx's cycles.
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

from natten_zoo.metal import MATRIX, NAX, SCALAR_4, SCALAR_8, Core
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
    tensor_multiply_adds: float = 512  # an M5's neural accelerator, float16
    local_bytes: float = 64  # threadgroup memory
    cache_bytes: float = 32  # L2, a core's share
    special: float = 4  # exp2, division: at a quarter of the rate
    int_division: float = 4  # nearly all are by constants
    reduction: float = 10 * 32  # of a simdgroup: five shuffles and five operations


FIGURES = Figures()
PRODUCTS = {"attention_forward": 2, "attention_backward_query": 3, "attention_backward_key": 4}
CORES = {"matrix": MATRIX, "scalar4": SCALAR_4, "scalar8": SCALAR_8, "nax": NAX}
GOALS = {"forward": 0.6, "backward": 0.5}  # of the roofline
# Rows that copies read and write: of three arrays before each launch, and of gradients joined.
COPIED = {"forward": 6, "backward": 2 * 6 + 6}
# name: cores, GHz, GB/s of memory.
CHIPS = {
    "M1": (8, 1.278, 68.3),
    "M2": (10, 1.398, 100.0),
    "M3": (10, 1.380, 100.0),
    "M4": (10, 1.470, 120.0),
    "M5": (10, 1.620, 153.6),
}


@dataclass(frozen=True)
class Case:
    """One row of the table; float16."""

    name: str
    spatial: tuple[int, ...]
    kernel_size: int
    head_dim: int
    window_stride: int = 1
    is_packed: bool = False

    @property
    def heads(self) -> int:
        """That are run; packed arrays are views where there are several."""
        return 2 if self.is_packed else 1

    @property
    def problem(self) -> Problem:
        return self.problem_of(self.heads)

    def problem_of(self, heads: int) -> Problem:
        d = self.head_dim
        rank, stride = len(self.spatial), self.window_stride
        hood = Neighborhood.of(rank, self.kernel_size, window_stride=stride)
        return Problem(hood, 1, self.spatial, heads, heads, d, d, d**-0.5, mx.float16)

    @property
    def is_large(self) -> bool:
        """Whether the goals for the roofline are for it."""
        return self.head_dim > 32 and self.kernel_size >= (5 if len(self.spatial) == 3 else 13)

    @property
    def small(self) -> Case:
        """To count copies, which are the same for any size."""
        return replace(self, spatial=(2 * min(self.kernel_size, 7),) * len(self.spatial),
                       kernel_size=min(self.kernel_size, 7), window_stride=1,
                       is_packed=False)  # fmt: skip

    def arrays(self, heads: int = 1) -> list[mx.array]:
        """Query, key, value and the output's gradient; of several heads views of one projection."""
        rng = np.random.default_rng(0)
        of_all = rng.standard_normal((1, *self.spatial, 4, heads, self.head_dim), np.float32)
        packed = mx.array(of_all[..., :3, :, :]).astype(mx.float16)
        views = [packed[..., i, :, :] for i in range(3)]
        gradient = mx.array(of_all[..., 3, :, :]).astype(mx.float16)
        mx.eval(views, gradient)
        return [*(views if heads > 1 else map(mx.contiguous, views)), gradient]


def cases() -> Iterator[Case]:
    """The rows: windows and head_dims at which the design is judged."""
    for name, spatial, kernel, head_dims in (
        ("1-D K7", (512,), 7, (32, 64)),
        ("2-D K7", (56, 56), 7, (32, 64, 128)),
        ("2-D K13", (56, 56), 13, (32, 64, 128)),
        ("2-D K32", (48, 48), 32, (64, 128)),
        ("3-D K3", (16, 16, 16), 3, (32, 64, 128)),
        ("3-D K5", (16, 16, 16), 5, (32, 64, 128)),
        ("3-D K11", (16, 16, 16), 11, (64, 128)),
    ):
        for head_dim in head_dims:
            yield Case(f"{name} D{head_dim}", spatial, kernel, head_dim)
    for head_dim in (64, 128):
        yield Case(f"2-D K32 S16 D{head_dim}", (48, 48), 32, head_dim, window_stride=16)
    for head_dim in (32, 64):
        yield Case(f"2-D K7 D{head_dim} packed", (56, 56), 7, head_dim, is_packed=True)


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
    tensors: float = 0.0  # products of 16x16 and 16x32 matrices
    copies: float = 0.0
    spilled: float = 0.0  # bytes

    @property
    def must(self) -> float:
        """Bytes of each array once, backward in two passes, and of the LSE.

        Packed gradients take those of queries along, read and written.
        """
        rows = 4 if self.direction == "forward" else 14 if self.case.is_packed else 12
        return rows * self.case.head_dim * 2 + 4

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
        products += self.tensors * 8192 / FIGURES.tensor_multiply_adds
        compute = products + self.operations / FIGURES.lanes
        memory = max(self.must / bytes_per_clock, (self.lines + self.spilled) / FIGURES.cache_bytes)
        own = max(compute, memory, self.local / FIGURES.local_bytes)
        return own + self.copies / bytes_per_clock


def cost(case: Case, who: str, direction: str, launches: list[Any], copies: float = 0.0) -> Cost:
    """What launches add up to; those that only tried a kernel on one token do not count."""
    counts = [x.counts for x in launches if x.counts.threads > 256]

    def each(**weights: float) -> float:
        total = sum(getattr(c, name) * weight for c in counts for name, weight in weights.items())
        return total / (math.prod(case.spatial) * case.heads)

    return Cost(
        case,
        who,
        direction,
        lines=each(device_read_lines=128, device_write_lines=128),
        local=each(threadgroup_read_bytes=1, threadgroup_write_bytes=1),
        products=each(matrix_multiplies=1),
        tensors=each(tensor_multiplies=1),
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
    q, k, v, g = case.arrays(case.heads)
    gradients = gpu.backward_packed if case.is_packed else gpu.backward
    operation = "backward_packed" if case.is_packed else "backward"
    with use_device(replace(current(), enough_threadgroups=1, core=core)) as device:
        with metal_emulator.record() as forward:
            out, lse, stats = gpu.forward(case.problem, q, k, v, None, None)
        with metal_emulator.record() as backward:
            gradients(case.problem, q, k, v, None, None, out, stats, g, mx.zeros(lse.shape))
    costs = []
    for direction, launches in (("forward", forward), ("backward", backward)):
        op = operation if direction == "backward" else direction
        steps = program(op, case.problem, device).steps
        spilled = sum(spills(case, step, launches, compiler) for step in steps) if compiler else 0
        copies = copied(case, direction)
        costs.append(replace(cost(case, "ours", direction, launches, copies), spilled=spilled))
    return costs


def copied(case: Case, direction: str) -> float:
    """Bytes per query and head that our kernels have copied before they are launched."""
    few = case.small
    problem, (q, k, v, g) = few.problem_of(2), few.arrays(heads=2)
    with metal_emulator.record() as forward:
        out, lse, stats = gpu.forward(problem, q, k, v, None, None)
    with metal_emulator.record() as backward:
        gpu.backward(problem, q, k, v, None, None, out, stats, g, mx.zeros(lse.shape))
    launches = forward if direction == "forward" else backward
    return sum(one.copied_bytes for one in launches) / (2 * math.prod(few.spatial))


def spills(case: Case, step: Step, launches: list[Any], compiler: str) -> float:
    """Bytes per query and head. A product reads a fragment's tokens once from local memory."""
    counts = [x.counts for x in launches if step.kernel in x.name and x.counts.threads > 256]
    read = sum(c.threadgroup_read_bytes for c in counts) / (math.prod(case.spatial) * case.heads)
    core = step.plan.core
    fragments = read / (PRODUCTS[step.kernel] * core.tokens * case.head_dim * 2)
    return fragments * core.lanes * measure(step.kernel, step.plan, compiler).spilled * 8


def with_copies(case: Case, core: Core | None) -> list[Cost]:
    """What packed arrays would cost without the kernels that take them."""
    if not case.is_packed:
        return []
    return [
        replace(one, case=case, who="copied", copies=COPIED[one.direction] * case.head_dim * 2)
        for one in ours(replace(case, is_packed=False), core, None)
    ]


def natten_mlx(case: Case) -> list[Cost]:
    """The same of natten-mlx; none without it."""
    if case.is_packed:
        return []
    try:
        peer = import_natten_mlx()
    except ImportError:
        return []
    peer.set_backend("fast_metal")
    if case.window_stride > 1 or math.prod(case.spatial) * case.problem.neighborhood.volume > 6e5:
        return []  # it has no such strides; and larger rows take it hours here
    attention = {1: peer.na1d, 2: peer.na2d, 3: peer.na3d}[len(case.spatial)]

    def launches(case: Case, heads: int) -> Iterator[tuple[str, list[Any]]]:
        *qkv, g = case.arrays(heads)
        with metal_emulator.record() as forward:
            mx.eval(attention(*qkv, case.kernel_size))
        with metal_emulator.record() as both:
            mx.eval(mx.vjp(lambda *x: [attention(*x, case.kernel_size)], qkv, [g]))
        yield "forward", forward
        yield "backward", both[len(forward) :]

    rows = 2 * math.prod(case.small.spatial)
    copies = {
        direction: sum(one.copied_bytes for one in done) / rows
        for direction, done in launches(case.small, 2)
    }
    return [
        cost(case, "natten-mlx", direction, done, copies[direction])
        for direction, done in launches(case, 1)
    ]


def goals(costs: list[Cost]) -> list[str]:
    """Of each of our rows, whether it meets what was set for it on an M1."""
    chip = CHIPS["M1"]
    clock = chip[2] / (chip[0] * chip[1])
    peers = {(c.case, c.direction): c.cycles(clock) for c in costs if c.who == "natten-mlx"}
    lines = []
    for one in (c for c in costs if c.who == "ours"):
        cycles, wanted = one.cycles(clock), GOALS[one.direction]
        share, peer = one.roofline(clock) / cycles, peers.get((one.case, one.direction))
        verdicts = []
        if one.case.is_large:
            verdict = "met" if share >= wanted else "MISSED"
            verdicts.append(f"{share:.0%} of the roofline, goal {wanted:.0%} {verdict}")
        if peer and len(one.case.spatial) > 1:
            verdict = "met" if peer >= 4 * cycles else "MISSED"
            verdicts.append(f"{peer / cycles:.1f} times below natten-mlx, goal 4 {verdict}")
        if verdicts:
            lines.append(f"{one.case.name:15} {one.direction:8}  {'; '.join(verdicts)}")
    return lines


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
    print(f"{'case':15} {'':10} {'':8} {'lines':>6} {'must':>5} {'local':>6} {'mma':>6} "
          f"{'waste':>5} {'ops':>7} {'copies':>6}  {heading}")  # fmt: skip
    found = []
    with metal_emulator.install(count_operations=True, strict=False):
        for case in (c for c in cases() if args.cases in c.name):
            core = CORES.get(args.core)
            counted = ours(case, core, args.compiler)
            for one in (*counted, *with_copies(case, core), *natten_mlx(case)):
                print(line(one), flush=True)
                found.append(one)
    print("", *goals(found), sep="\n")


def line(one: Cost) -> str:
    """A row of the table."""
    chips = []
    for cores, clock, bandwidth in CHIPS.values():
        per_clock = bandwidth / (cores * clock)
        cycles = one.cycles(per_clock)
        chips.append(f"{cycles:10.0f} {one.roofline(per_clock) / cycles:5.0%}")
    products = one.products + one.tensors * 16
    waste = products * 512 / one.multiply_adds
    return (
        f"{one.case.name:15} {one.who:10} {one.direction:8} {one.lines:6.0f} {one.must:5.0f} "
        f"{one.local:6.0f} {products:6.1f} {waste:5.2f} {one.operations:7.0f} "
        f"{one.copies:6.0f}  " + "  ".join(chips)
    )


if __name__ == "__main__":
    main()

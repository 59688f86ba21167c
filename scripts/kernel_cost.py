"""What a GPU would pay for the kernels, counted in the emulator, beside what it must pay.

    python scripts/kernel_cost.py                 # all rows, as in docs/kernels.md
    python scripts/kernel_cost.py --cases "2-D K7"

Needs clang 19 or newer (tests/metal_emulator/README.md). For each case one head of one sample is
run through the emulated Metal kernels and counted, per query and head:

* ``device``   bytes that threads read and write; ``lines`` those of the 128-byte lines that each
               threadgroup touches, the traffic below a core's cache
* ``local``    bytes of threadgroup memory read and written
* ``mma``      products of 8x8 matrices, and how many times those that the windows need

Times are core-cycles from a model (FIGURES below: published figures of an Apple GPU core, and an
estimated number of other instructions per tile of eight queries and eight keys); they compare
designs and are no measurement. ``share`` is the roofline's part of the modelled time: the time of
the compulsory bytes or of the windows' multiply-adds at peak, whichever is longer.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
import numpy as np

from natten_zoo.ops import Neighborhood, gpu, gpu_plan
from natten_zoo.ops.problem import Problem
from tests import metal_emulator


@dataclass(frozen=True)
class Figures:
    """A core of an Apple GPU, per clock."""

    multiply_adds: float = 128  # float32 and float16 alike
    matrix_multiply_adds: float = 102
    local_bytes: float = 64  # threadgroup memory
    cache_bytes: float = 32  # L2, a core's share
    issue: float = 4  # instructions of a simdgroup
    # Instructions besides the products, per eight queries and eight keys: masks, exponentials,
    # the walk over the slab, and per element of a row loads and rescaling.
    other: float = 56
    other_per_dim: float = 0.4375


# name: cores, GHz, GB/s of memory.
CHIPS = {
    "M1": (8, 1.278, 68.3),
    "M2": (10, 1.398, 100.0),
    "M3": (10, 1.380, 100.0),
    "M4": (10, 1.470, 120.0),
}
FIGURES = Figures()


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


def cases() -> Iterator[Case]:
    """The rows: windows and head_dims at which the design is judged."""
    for name, spatial, kernel in (
        ("1-D K7", (512,), 7),
        ("2-D K7", (56, 56), 7),
        ("2-D K13", (56, 56), 13),
        ("3-D K3", (16, 16, 16), 3),
        ("3-D K5", (12, 12, 12), 5),
    ):
        for head_dim in (32, 64):
            yield Case(f"{name} D{head_dim}", spatial, kernel, head_dim)


@dataclass(frozen=True)
class Cost:
    """Counts per query and head of one direction."""

    case: Case
    direction: str
    device: float
    lines: float
    local: float
    products: float

    @property
    def arrays(self) -> int:
        """Rows of a query's length that must be moved; backward in its two passes."""
        return 4 if self.direction == "forward" else 12

    @property
    def compulsory_bytes(self) -> float:
        """Each array once, and the LSE."""
        return self.arrays * self.case.head_dim * 2 + 4

    @property
    def multiply_adds(self) -> float:
        """Of the windows alone: two products forward, seven in two passes backward."""
        times = 2 if self.direction == "forward" else 7
        return times * self.case.head_dim * self.case.problem.neighborhood.volume

    @property
    def waste(self) -> float:
        """Products made over products needed."""
        return self.products * 512 / self.multiply_adds

    def roofline(self, bytes_per_clock: float) -> float:
        """Core-cycles that no implementation goes below."""
        at_peak = self.multiply_adds / FIGURES.multiply_adds
        return max(self.compulsory_bytes / bytes_per_clock, at_peak)

    def modelled(self, bytes_per_clock: float) -> float:
        """Core-cycles: the products and what goes with them, unless memory takes longer."""
        head_dim = self.case.head_dim
        per_tile = self.multiply_adds / self.case.problem.neighborhood.volume / 8
        tiles = self.products / per_tile  # of eight queries by eight keys
        passes = 1 if self.direction == "forward" else 2
        other = passes * (FIGURES.other + FIGURES.other_per_dim * head_dim)
        compute = self.products * 512 / FIGURES.matrix_multiply_adds + tiles * other / FIGURES.issue
        memory = max(self.compulsory_bytes / bytes_per_clock, self.lines / FIGURES.cache_bytes)
        return max(compute, memory, self.local / FIGURES.local_bytes)


def measure(case: Case) -> list[Cost]:
    """Counts of forward and backward, with the tile that a batch of many heads would get."""
    problem, rng = case.problem, np.random.default_rng(0)
    shape = (1, *case.spatial, 1, case.head_dim)
    q, k, v, g = (
        mx.array(rng.standard_normal(shape, np.float32)).astype(mx.float16) for _ in "qkvg"
    )
    with metal_emulator.install(), metal_emulator.record() as launches:
        out, lse = gpu.forward(problem, q, k, v, None, None)
        forward = launches[-1:]
        gpu.backward(problem, q, k, v, None, None, out, lse, g, mx.zeros(lse.shape))
        backward = [x for x in launches if "backward" in x.name and x.counts.threads > 256]
    return [total(case, "forward", forward), total(case, "backward", backward)]


def total(case: Case, direction: str, launches: list[Any]) -> Cost:
    queries = math.prod(case.spatial)

    def each(*names: str) -> float:
        return sum(getattr(x.counts, name) for x in launches for name in names) / queries

    return Cost(
        case,
        direction,
        each("device_read_bytes", "device_write_bytes"),
        each("device_read_lines", "device_write_lines") * 128,
        each("threadgroup_read_bytes", "threadgroup_write_bytes"),
        each("matrix_multiplies"),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="part of the names of the rows to print")
    args = parser.parse_args()
    if metal_emulator.why_not():
        raise SystemExit(metal_emulator.why_not())
    gpu_plan.ENOUGH_GROUPS = 1
    print("per query and head, float16; modelled core-cycles and their share of the roofline")
    names = "  ".join(f"{chip:>4} cycles share" for chip in CHIPS)
    print(f"{'case':12} {'':8} {'device':>7} {'lines':>6} {'must':>5} {'local':>6} {'mma':>6} "
          f"{'waste':>5}  {names}")  # fmt: skip
    for case in cases():
        for cost in measure(case) if args.cases in case.name else ():
            print(line(cost), flush=True)


def line(cost: Cost) -> str:
    """A row of the table."""
    chips = []
    for cores, clock, bandwidth in CHIPS.values():
        per_clock = bandwidth / (cores * clock)
        cycles = cost.modelled(per_clock)
        chips.append(f"{cycles:11.0f} {cost.roofline(per_clock) / cycles:5.0%}")
    return (
        f"{cost.case.name:12} {cost.direction:8} {cost.device:7.0f} {cost.lines:6.0f} "
        f"{cost.compulsory_bytes:5.0f} {cost.local:6.0f} {cost.products:6.1f} {cost.waste:5.2f}  "
        + "  ".join(chips)
    )


if __name__ == "__main__":
    main()

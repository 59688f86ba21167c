"""How kernels are run (`Options`), and what is known of a run afterwards (`Launch`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Report:
    """One kind of fault at one place: how often, and who did it first."""

    kind: str
    message: str
    place: str
    count: int

    def __str__(self) -> str:
        return f"[{self.kind}] {self.place} {self.message} (x{self.count})"


@dataclass(frozen=True)
class Options:
    """How kernels are run.

    Attributes:
        checked: Watch every memory access. Without it only what simdgroups do together is checked,
            and an access out of bounds may end the process, but kernels run several times faster.
        strict: Pass each new instantiation through the strict check first.
        order: Which lanes and simdgroups run first: 0 the lowest, 1 the highest, 2 at random.
        seed: Of the random order.
        reconverges: Lanes that took different branches are together again behind them. If not, only
            barriers bring them together, and a collective that needs both is reported.
        refuses: The device builds no kernel whose name matches this.
        has_tensors: It has the header of MetalPerformancePrimitives.
        takes_bounds: It builds those that say how many threads a threadgroup has at most.
        most_threads: Of a threadgroup, in a pipeline that was not told so.
        patience: It ends a launch that reads more bytes of threadgroup memory, if they are counted.
        tensor_layout: Which lanes hold what in a product of cooperative tensors: 0 as on an M5, 1
            otherwise, as another generation may have it.
        fast_math: Compile as with `math_mode="fast"`; None: as the kernel's options say.
        raise_faults: Raise `KernelFault` on a report, rather than only recording it.
        count_operations: Count arithmetic as well, in a checked build of its own.
    """

    checked: bool = True
    strict: bool = True
    order: int = 0
    seed: int = 1
    reconverges: bool = True
    refuses: str = r"(?!)"
    has_tensors: bool = True
    takes_bounds: bool = True
    most_threads: int = 1024
    patience: float = math.inf
    tensor_layout: int = 0
    fast_math: bool | None = None
    raise_faults: bool = True
    count_operations: bool = False

    @property
    def build(self) -> str:
        """Which of `build.BUILDS` is meant."""
        if self.count_operations:
            return "counted"
        return "checked" if self.checked else "fast"


@dataclass(frozen=True)
class Counts:
    """What a launch did. Bytes and lines are counted in checked runs, operations on request.

    Bytes are as issued, lane by lane. Lines are of 128 bytes, each counted once per threadgroup:
    the traffic below a cache that holds what one threadgroup touches. A matrix multiply is one of
    8x8 fragments (512 multiply-adds) by a simdgroup, a tensor multiply of 16x16 and 16x32 (8192).
    Operations, from `fmas` on, are of single
    lanes, but every lane of a simdgroup counts as its busiest; half conversions widen one number,
    special operations are divisions and functions such as exp2.
    """

    device_read_bytes: int
    device_write_bytes: int
    device_read_lines: int
    device_write_lines: int
    threadgroup_read_bytes: int
    threadgroup_write_bytes: int
    matrix_multiplies: int
    tensor_multiplies: int
    reductions: int
    shuffles: int
    votes: int
    atomics: int
    threadgroup_barriers: int
    simdgroup_barriers: int
    threads: int
    threadgroups: int
    fmas: int
    float_operations: int
    half_conversions: int
    special_operations: int
    int_operations: int
    int_divisions: int


@dataclass(frozen=True)
class Launch:
    """The record of one launch.

    `copied_bytes` are read and written before it, where MLX makes inputs row-contiguous.
    """

    name: str
    grid: tuple[int, ...]
    threadgroup: tuple[int, ...]
    counts: Counts
    threadgroup_bytes: int
    copied_bytes: int
    reports: tuple[Report, ...]
    build_seconds: float
    run_seconds: float


_options = Options()
_last: Launch | None = None
_recorders: list[list[Launch]] = []


def current_options() -> Options:
    """What applies to the next launch."""
    return _options


@contextlib.contextmanager
def options(**changes: Any) -> Iterator[Options]:
    """Runs the launches within under changed `Options`."""
    global _options
    before = _options
    _options = replace(before, **changes)
    try:
        yield _options
    finally:
        _options = before


def last_launch() -> Launch:
    """The record of the latest launch."""
    if _last is None:
        raise RuntimeError("no kernel has been launched")
    return _last


def add(launch: Launch) -> None:
    """Makes a launch the latest one."""
    global _last
    _last = launch
    for launches in _recorders:
        launches.append(launch)


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Yields a list that fills with the launches made within."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)

"""What gives a changed kernel away in the emulator: problems of all kinds, until one does.

    python -m tests.metal_emulator.judge tile.h 1234 '<' '<='

The file of metal/ has the third argument at that place and gets the fourth. The exit status is 1
if something is wrong, and the last line says what. scripts/mutants.py asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from unittest import mock

import mlx.core as mx

from natten_zoo import metal as sources
from natten_zoo.metal import MATRIX
from natten_zoo.metal import deformable as texts
from natten_zoo.ops.gpu import deformable
from tests.metal_emulator import KernelFault, install, record
from tests.metal_emulator.test_mutants import CASES, Mutant, mutated
from tests.ops.gpu import test_deformable
from tests.ops.gpu.problems import (
    FAMILIES,
    Case,
    check_attention,
    check_forward,
    check_unfused,
    random_case,
    worst,
)

# By index in FAMILIES, with problems of each: 2-D and 3-D with a bias on matrices, 2-D and 1-D on
# single lanes; then bfloat16 on single lanes, and on a core without it. And those of neural
# accelerators: all of that core takes part in them forward, and one kernel is soon built.
CHOSEN = {4: 4, 9: 4, 11: 4, 10: 4, 12: 2, 15: 2}
ACCELERATED = {17: 4, 16: 2}
UNFUSED = ("qk.metal", "av.metal", "av_backward_value.metal")
Check = tuple[AbstractContextManager[None], Callable[[], str | None]]


def checks(file: str, mutant: Mutant | None) -> Iterator[Check]:
    """What a file has a part in: with which changes, and what is run."""
    if file.startswith(("deformable_", "sampling")):
        yield spoilt(mutant), of_deformable
        return
    if file == "core_nax.h":
        yield from attention(check_forward, mutant, ACCELERATED)
        return
    climbing = [CASES["climbing"], CASES["long"]]
    if file not in UNFUSED:
        yield from attention(check_attention, mutant)
        wrong = partial(first_wrong, check_attention, FAMILIES[0].dtype, climbing)
        yield mutated(mutant, MATRIX), wrong
    if not file.startswith("attention_"):
        yield from attention(check_unfused, mutant)
    if not file:
        yield spoilt(None), of_deformable


def attention(
    check: Callable[[Case], dict[str, float]],
    mutant: Mutant | None,
    chosen: dict[int, int] = CHOSEN,
) -> Iterator[Check]:
    """Random problems of each of the chosen families."""
    for index, count in chosen.items():
        family = FAMILIES[index]
        cases = [partial(random_case, family, seed) for seed in range(count)]
        yield mutated(mutant, family.core), partial(first_wrong, check, family.dtype, cases)


def first_wrong(
    check: Callable[[Case], dict[str, float]], dtype: mx.Dtype, cases: list[Callable[[], Case]]
) -> str | None:
    """The first wrong number, if any."""
    if check is check_attention and (found := worst(check_forward(cases[0]()), dtype)):
        return found  # without a build of the other kernels
    return next(filter(None, (worst(check(make()), dtype) for make in cases)), None)


def of_deformable() -> str | None:
    """Deformable attention: random problems in float32, a few of other dtypes."""
    for seed in range(16):
        dtype = mx.float32 if seed < 12 else list(test_deformable.DTYPES)[1 + seed % 2]
        problem = test_deformable.draw(seed, dtype)
        expected, tolerance = test_deformable.reference(problem), test_deformable.DTYPES[dtype]
        try:
            test_deformable.assert_close(test_deformable.run(problem), expected, tolerance)
        except AssertionError:
            return f"problem {seed}"
    return None


def spoilt(mutant: Mutant | None) -> AbstractContextManager[None]:
    """The kernels of deformable attention are built from changed sources."""
    before = sources.source

    def source(name: str) -> str:
        text = before(name)
        if mutant and name == mutant.file:
            text, count = re.subn(mutant.pattern, mutant.replacement, text)
            assert count == 1
        return text

    with ExitStack() as changes:
        for module, name, value in (
            (sources, "source", source),
            (texts, "source", source),
            (deformable, "header", texts.header.__wrapped__),
            (deformable, "_built", deformable._built.__wrapped__),
        ):
            changes.enter_context(mock.patch.object(module, name, value))
        return changes.pop_all()


def caught(file: str, start: int, before: str, after: str) -> str:
    """Kinds of reports, a wrong result or an error; empty if nothing is wrong."""
    # A pattern for this one place: everything before it by length.
    pattern = rf"\A([\s\S]{{{start}}}){re.escape(before)}" if file else ""
    mutant = Mutant(file, pattern, rf"\g<1>{after}", "") if file else None
    settings = {"reconverges": False, "strict": False}
    for changes, wrong in checks(file, mutant):
        found = None
        # Of a fault the launch says which.
        with install(**settings), changes, record() as launches, suppress(KernelFault):
            found = wrong()
        kinds = {r.kind for launch in launches for r in launch.reports}
        if found or kinds:
            return ", ".join(sorted(kinds | ({found} if found else set())))
    return ""


if __name__ == "__main__":
    name, place, *change = sys.argv[1:] or ("", "0", "", "")
    reason = caught(name, int(place), *change)
    print(reason)
    sys.exit(bool(reason))

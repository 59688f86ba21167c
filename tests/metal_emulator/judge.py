"""What gives a changed kernel away in the emulator: problems of all kinds, until one does.

    python -m tests.metal_emulator.judge tile.h 1234 '<' '<='

The file of metal/ has the third argument at that place and gets the fourth. The exit status is 1
if something is wrong, and the last line says what. scripts/mutants.py asks.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import mlx.core as mx

from natten_zoo import metal as sources
from natten_zoo.metal import MATRIX, NAX, SCALAR_4, Core
from natten_zoo.metal import deformable as texts
from natten_zoo.ops.gpu import deformable
from natten_zoo.ops.gpu.device import Processor, current, use_device
from tests.metal_emulator import KernelFault, install, record
from tests.metal_emulator.special import (
    LARGE,
    again,
    apace,
    apart,
    aside,
    askew,
    aslant,
    behind,
    beyond,
    busy,
    check_packed,
    check_padding,
    check_without_lse,
    far,
    high,
    longer,
    odd,
    packed,
    ragged,
    seen_by_all,
    single,
    slim,
    sparse,
    spiky,
    thin,
    tilted,
    twice,
    unseen,
)
from tests.metal_emulator.test_mutants import CASES, Mutant, mutated
from tests.ops.gpu import test_deformable, test_planes, test_window
from tests.ops.gpu.problems import (
    FAMILIES,
    MATRIX_2,
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
ALONE = replace(MATRIX, threads=32)  # a team to a threadgroup
FEW = {4: 4, 9: 4, 12: 2}  # of the steps, for what the fused passes have shared in
Check = tuple[AbstractContextManager[None], Callable[[], str | None]]


def checks(file: str, mutant: Mutant | None, planes_alone: bool = False) -> Iterator[Check]:
    """What a file has a part in: with which changes, and what is run."""
    if planes_alone:
        yield from planes(mutant)
        return
    if file.startswith(("deformable_", "sampling")):
        yield spoilt(mutant), of_deformable
        return
    if file == "core_nax.h":
        yield from accelerated(mutant)
        return
    if file in ("", "window.h"):
        yield nullcontext(), partial(of_windows, mutant)
    if file not in UNFUSED:
        if file and not file.startswith("attention_backward"):
            # Of two kernels fewer: soon built, for one fault, and seen by the next as well.
            yield from attention(check_forward, mutant)
        yield from attention(check_attention, mutant)
        yield from special(mutant)
    if not file or (file.endswith(".h") and not file.startswith("core_")):
        # Lanes have more numbers of a row there.
        yield from accelerated(mutant)
    if not file.startswith("attention_"):
        yield from attention(check_unfused, mutant, CHOSEN if file in ("", *UNFUSED) else FEW)
        yield from slabs(MATRIX, mutant)
    if file in ("", *UNFUSED, "parts.h"):
        yield from slabs(MATRIX_2, mutant)
    if file in ("", "walk.h", "slab.h", "stage.h"):
        yield from planes(mutant)
        yield from pairs(mutant)
    if not file:
        yield spoilt(None), of_deformable


def of_windows(mutant: Mutant | None) -> str | None:
    """All windows of short axes, and who sees a key, compiled for this machine."""
    text = sources.source("window.h")
    if mutant:
        text = re.sub(mutant.pattern, mutant.replacement, text)
    with tempfile.TemporaryDirectory() as folder:
        library = test_window.build(Path(folder), text)
    for test in (
        test_window.test_keys_are_those_of_neighborhood,
        test_window.test_queries_are_the_inverse,
    ):
        try:
            test(library)
        except AssertionError:
            return test.__name__
    return None


def slabs(core: Core, mutant: Mutant | None) -> Iterator[Check]:
    """The steps over many slabs, with windows of one key, and in many heads."""
    cases = [longer, single, busy]
    yield mutated(mutant, core), partial(first_wrong, check_unfused, mx.float32, cases)


def planes(mutant: Mutant | None) -> Iterator[Check]:
    """Slabs in planes, one or two at a time, with a core of the emulator's own."""
    for family in test_planes.FAMILIES:
        cases = [partial(random_case, family, 7 * seed) for seed in range(3)]
        yield in_planes(mutant), partial(first_wrong, check_attention, family.dtype, cases)
    large = [partial(test_planes.large_case, *sizes) for sizes in test_planes.LARGE]
    yield in_planes(mutant), partial(first_wrong, check_attention, mx.float16, large)
    yield in_planes(mutant, 2), partial(first_wrong, check_attention, mx.float16, large[:1])
    yield in_planes(mutant), partial(first_wrong, check_forward, mx.float16, [odd])


@contextmanager
def in_planes(mutant: Mutant | None, buffers: int = 1) -> Iterator[None]:
    """Such a core multiplies, with changed sources."""
    with test_planes.in_planes(buffers), mutated(mutant, test_planes.PLANES):
        yield


def pairs(mutant: Mutant | None) -> Iterator[Check]:
    """Slabs of rows, two at a time, as CUDA has them where windows are large."""
    for check in (check_attention, check_unfused):
        yield in_pairs(mutant), partial(first_wrong, check, mx.float32, [thin])


@contextmanager
def in_pairs(mutant: Mutant | None) -> Iterator[None]:
    """There is room for two slabs, with changed sources."""
    room = 28 * 1024
    one = Processor(registers=0, memory_bytes=room, spare_bytes=room, reserved_bytes=0)
    with use_device(replace(current(), processor=one)), mutated(mutant, MATRIX):
        yield


def accelerated(mutant: Mutant | None) -> Iterator[Check]:
    """What neural accelerators compute."""
    yield from attention(check_forward, mutant, ACCELERATED)
    yield mutated(mutant, NAX), partial(first_wrong, check_forward, mx.float16, [spiky])


def special(mutant: Mutant | None) -> Iterator[Check]:
    """What random problems lack: logits that climb or are large, slabs, arrays that lie anyhow.

    And queries on a finer map, and teams of several simdgroups.
    """
    for core, check, case in (
        (MATRIX, check_attention, CASES["climbing"]),
        (SCALAR_4, check_attention, CASES["climbing"]),
        (MATRIX, check_attention, CASES["long"]),
        (MATRIX, check_packed, packed),
        (SCALAR_4, check_packed, packed),
        (SCALAR_4, check_packed, sparse),
        (MATRIX, check_without_lse, packed),
        (MATRIX, check_attention, CASES["finer"]),
        (SCALAR_4, check_attention, CASES["finer"]),
        (MATRIX, check_attention, aslant),
        (MATRIX, check_attention, apart),
        (MATRIX, check_attention, askew),
        (SCALAR_4, check_attention, askew),
        (MATRIX, check_attention, tilted),
        (MATRIX, check_padding, ragged),
        (SCALAR_4, check_padding, ragged),
        (MATRIX, check_attention, unseen),
        (SCALAR_4, check_forward, slim),
        (ALONE, check_forward, thin),
        (MATRIX, check_attention, single),
        (MATRIX, check_attention, busy),
        (MATRIX, check_attention, twice),
        (MATRIX, check_attention, again),
        (MATRIX, check_attention, CASES["large"]),
        (SCALAR_4, check_attention, CASES["large"]),
        (MATRIX, check_attention, high),
        (MATRIX, check_attention, far),
        (MATRIX, check_attention, partial(seen_by_all, 8, 9)),
        (MATRIX, check_attention, partial(seen_by_all, 4, 4, 4)),
        (MATRIX, check_attention, beyond),
        (MATRIX_2, check_attention, packed),
        (MATRIX_2, check_attention, CASES["long"]),
        (MATRIX_2, check_attention, behind),
        (MATRIX_2, check_attention, apace),
        (MATRIX_2, check_attention, aside),
    ):
        yield mutated(mutant, core), partial(first_wrong, check, mx.float32, [case])
    yield mutated(mutant, MATRIX), partial(first_wrong, check_forward, mx.float16, [odd])


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
    seeds = [*range(16), 34]  # the last has one row
    problems = {}
    for seed in seeds:
        dtype = list(test_deformable.DTYPES)[1 + seed % 2] if 12 <= seed < 16 else mx.float32
        problems[f"problem {seed}"] = test_deformable.draw(seed, dtype), dtype
    problems["one square"] = test_deformable.one_square(), mx.float32
    for name, (problem, dtype) in problems.items():
        expected, tolerance = test_deformable.reference(problem), test_deformable.DTYPES[dtype]
        try:
            test_deformable.assert_close(test_deformable.run(problem), expected, tolerance)
        except AssertionError:
            return name
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
    planes_alone = bool(file) and for_planes(sources.source(file), start)
    return next(filter(None, map(seen, checks(file, mutant, planes_alone))), "")


def seen(check: Check) -> str:
    """What a check finds: kinds of reports, a wrong result; empty if nothing is wrong."""
    changes, wrong = check
    large = isinstance(wrong, partial) and len(wrong.args) > 2 and wrong.args[2][0] in LARGE
    settings = {"reconverges": large, "strict": False}
    found = None
    # Of a fault the launch says which.
    with install(**settings), changes, record() as launches, suppress(KernelFault):
        found = wrong()
    kinds = {r.kind for launch in launches for r in launch.reports}
    return ", ".join(sorted(kinds | ({found} if found else set())))


def for_planes(text: str, place: int) -> bool:
    """Whether other cores leave it out."""
    parts = re.finditer(r"#if NA_PLANE.*?#(?:else|endif)", text, re.S)
    return any(part.start() < place < part.end() for part in parts)


if __name__ == "__main__":
    name, place, *change = sys.argv[1:] or ("", "0", "", "")
    reason = caught(name, int(place), *change)
    print(reason)
    sys.exit(bool(reason))

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
from dataclasses import replace
from functools import partial
from unittest import mock

import mlx.core as mx

from natten_zoo import metal as sources
from natten_zoo.metal import MATRIX, SCALAR_4
from natten_zoo.metal import deformable as texts
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import deformable
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import KernelFault, install, record
from tests.metal_emulator.test_mutants import CASES, Mutant, mutated
from tests.ops.gpu import test_deformable
from tests.ops.gpu.problems import (
    FAMILIES,
    Case,
    case_of,
    check_attention,
    check_forward,
    check_unfused,
    errors,
    numpy,
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
    if file not in UNFUSED:
        yield from attention(check_attention, mutant)
        yield from special(mutant)
    if not file.startswith("attention_"):
        yield from attention(check_unfused, mutant)
    if not file:
        yield spoilt(None), of_deformable


def special(mutant: Mutant | None) -> Iterator[Check]:
    """What random problems lack: logits that climb or are large, slabs, arrays that lie anyhow."""
    for core, check, case in (
        (MATRIX, check_attention, CASES["climbing"]),
        (MATRIX, check_attention, CASES["long"]),
        (MATRIX, check_attention, slabs),
        (MATRIX, check_packed, packed),
        (SCALAR_4, check_packed, packed),
        (MATRIX, check_attention, apart),
        (MATRIX, check_large, CASES["large"]),
        (SCALAR_4, check_large, CASES["large"]),
    ):
        yield mutated(mutant, core), partial(first_wrong, check, mx.float32, [case])


def slabs() -> Case:
    """Keys and queries of two heads in four slabs and more."""
    return case_of(Problem(Neighborhood.of(1, 180), 1, (300,), 2, 1, 64, 64, 0.1, mx.float32))


def packed() -> Case:
    """Queries, keys and values that one array may hold."""
    hood = Neighborhood.of(2, (3, 4), dilation=(1, 2))
    return case_of(Problem(hood, 2, (9, 14), 4, 2, 16, 16, 0.25, mx.float32, has_rpb=True))


def apart() -> Case:
    """Channels that lie two apart."""
    case = packed()
    views = {
        n: mx.repeat(getattr(case, n), 2, axis=-1)[..., ::2] for n in ("query", "key", "value")
    }
    return replace(case, **views)


def check_packed(case: Case) -> dict[str, float]:
    """`check_attention` on views of one array, and with one array of gradients."""
    heads, kv_heads = case.problem.heads, case.problem.kv_heads
    ends = [heads, heads + kv_heads]
    arrays = mx.concatenate([case.query, case.key, case.value], axis=-2).split(ends, axis=-2)
    out, lse, stats = gpu.forward(case.problem, *arrays, case.rpb, None)
    d_qkv, d_rpb = gpu.backward_packed(
        case.problem, *arrays, case.rpb, None, out, stats, case.query, lse
    )
    exact = [numpy(x) for x in (case.query, case.key, case.value, case.rpb)]
    wanted = case.reference.backward(*exact, numpy(case.query), numpy(lse))
    names = ("d_query", "d_key", "d_value", "d_rpb")
    return errors(names, (*d_qkv.split(ends, axis=-2), d_rpb), wanted)


def check_large(case: Case) -> dict[str, float]:
    """Where weights are 0 or 1 the other gradients are differences of equals."""
    found = check_attention(case)
    return {name: found[name] for name in ("out", "d_value")}


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
    for changes, wrong in checks(file, mutant):
        large = isinstance(wrong, partial) and wrong.args[0] is check_large
        settings = {"reconverges": large, "strict": False}  # core_scalar.h says why
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

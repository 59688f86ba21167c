"""What gives a changed kernel away in the emulator: problems of all kinds, until one does.

    python -m tests.metal_emulator.judge tile.h 1234 '<' '<='

The file of metal/ has the third argument at that place and gets the fourth. The exit status is 1
if something is wrong, and the last line says what. scripts/mutants.py asks.
"""

from __future__ import annotations

import math
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
from natten_zoo.metal import MATRIX, SCALAR_4, Core
from natten_zoo.metal import deformable as texts
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import deformable, plan
from natten_zoo.ops.problem import Problem, pack, unpack
from tests.metal_emulator import KernelFault, install, record
from tests.metal_emulator.test_mutants import CASES, Mutant, mutated
from tests.ops.gpu import test_deformable, test_planes, test_window
from tests.ops.gpu.problems import (
    FAMILIES,
    MATRIX_2,
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
        yield from attention(check_forward, mutant, ACCELERATED)
        return
    if file in ("", "window.h"):
        yield nullcontext(), partial(of_windows, mutant)
    if file not in UNFUSED:
        if not file.startswith("attention_backward"):  # of two kernels fewer, soon built
            yield from attention(check_forward, mutant)
        yield from attention(check_attention, mutant)
        yield from special(mutant)
    if not file or (file.endswith(".h") and not file.startswith("core_")):
        # Lanes have more numbers of a row there.
        yield from attention(check_forward, mutant, ACCELERATED)
    if not file.startswith("attention_"):
        yield from attention(check_unfused, mutant, CHOSEN if file in UNFUSED else FEW)
        yield from slabs(MATRIX, mutant)
    if file in (*UNFUSED, "parts.h"):
        yield from slabs(MATRIX_2, mutant)
    if file in ("", "walk.h", "slab.h", "stage.h"):
        yield from planes(mutant)
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


@contextmanager
def in_planes(mutant: Mutant | None, buffers: int = 1) -> Iterator[None]:
    """Such a core multiplies, with changed sources."""
    with test_planes.in_planes(buffers), mutated(mutant, test_planes.PLANES):
        yield


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
        (MATRIX, check_attention, CASES["finer"]),
        (SCALAR_4, check_attention, CASES["finer"]),
        (MATRIX, check_attention, aslant),
        (MATRIX, check_attention, apart),
        (MATRIX, check_attention, askew),
        (SCALAR_4, check_attention, askew),
        (MATRIX, check_padding, ragged),
        (SCALAR_4, check_padding, ragged),
        (MATRIX, check_attention, single),
        (MATRIX, check_attention, busy),
        (MATRIX, check_attention, twice),
        (MATRIX, check_attention, again),
        (MATRIX, check_attention, CASES["large"]),
        (SCALAR_4, check_attention, CASES["large"]),
        (MATRIX, check_attention, high),
        (MATRIX, check_attention, far),
        (MATRIX_2, check_attention, packed),
        (MATRIX_2, check_attention, CASES["long"]),
        (MATRIX_2, check_attention, apace),
        (MATRIX_2, check_attention, aside),
    ):
        yield mutated(mutant, core), partial(first_wrong, check, mx.float32, [case])


def single() -> Case:
    """Windows of one key, whose bias is one number of each head, eight of which are not padded."""
    problem = Problem(Neighborhood.of(1, 1), 1, (9,), 8, 1, 8, 8, 1.0, mx.float32, has_rpb=True)
    return case_of(problem)


def busy() -> Case:
    """So many heads that a threadgroup sums the gradient of the bias over several tiles."""
    heads = plan.BIAS_THREADGROUPS
    hood = Neighborhood.of(1, 3)
    return case_of(Problem(hood, 1, (70,), heads, 1, 4, 4, 0.5, mx.float32, has_rpb=True))


def longer() -> Case:
    """The same over so many slabs that a tour's three boxes come round."""
    problem = Problem(Neighborhood.of(1, 330), 1, (331,), 2, 1, 64, 64, 0.1, mx.float32)
    return case_of(problem)


def high() -> Case:
    """Logits of 4e8 in 3-D, of keys that lie otherwise than values."""
    problem = Problem(Neighborhood.of(3, (2, 3, 2)), 2, (3, 4, 5), 1, 1, 8, 12, 0.25, mx.float32)
    case = case_of(problem)
    value = mx.repeat(case.value, 2, axis=-1)[..., ::2]
    return replace(case, query=1e4 * case.query, key=1e4 * case.key, value=value)


# In which lanes of a team may part ways (core_scalar.h says why).
LARGE = (CASES["climbing"], CASES["large"], high)


def far() -> Case:
    """A bias so large that its gradient is summed in device memory."""
    hood = Neighborhood.of(2, 29, stride=7)
    return case_of(Problem(hood, 1, (29, 31), 1, 1, 8, 8, 0.25, mx.float32, has_rpb=True))


def apace() -> Case:
    """Windows of whole teams, of which slabs have two fragments, one, or a single token."""
    hood = Neighborhood.of(1, 17, window_stride=8)
    return case_of(Problem(hood, 1, (160,), 1, 1, 96, 96, 0.1, mx.float32))


def aside() -> Case:
    """In 2-D, where slabs that are cut on x have rows of one team and none of another."""
    hood = Neighborhood.of(2, (4, 20), window_stride=(2, 4))
    return case_of(Problem(hood, 1, (8, 43), 1, 1, 96, 96, 0.1, mx.float32))


def twice() -> Case:
    """Rows so long that the pass over keys goes twice over its slabs, one of each head."""
    hood = Neighborhood.of(2, (3, 5))
    return case_of(Problem(hood, 1, (3, 5), 3, 1, 64, 64, 0.1, mx.float32))


def again() -> Case:
    """The same over more slabs, all of one head."""
    hood = Neighborhood.of(2, (5, 7))
    return case_of(Problem(hood, 1, (20, 26), 1, 1, 64, 64, 0.1, mx.float32))


def ragged() -> Case:
    """Samples of no tokens and of some; tokens that do not fill a team's rows."""
    hood, lengths = Neighborhood.of(1, 3), mx.array([[0], [7]], mx.int32)
    problem = Problem(hood, 2, (21,), 2, 1, 9, 9, 0.5, mx.float32, has_lengths=True)
    return case_of(problem, lengths=lengths)


def packed() -> Case:
    """Queries, keys and values that one array may hold."""
    hood = Neighborhood.of(2, (3, 4), dilation=(1, 2))
    return case_of(Problem(hood, 2, (9, 14), 4, 2, 16, 16, 0.25, mx.float32, has_rpb=True))


def sparse() -> Case:
    """The same, of which some queries are left out."""
    hood = Neighborhood.of(2, (3, 4), stride=(2, 3), dilation=(1, 2))
    return case_of(Problem(hood, 2, (9, 14), 4, 2, 16, 16, 0.25, mx.float32, has_rpb=True))


def apart() -> Case:
    """Channels that lie two apart."""
    case = packed()
    views = {
        n: mx.repeat(getattr(case, n), 2, axis=-1)[..., ::2] for n in ("query", "key", "value")
    }
    return replace(case, **views)


def askew() -> Case:
    """Rows that begin where 16 bytes don't."""
    case = packed()
    arrays = {name: getattr(case, name) for name in ("query", "key", "value")}
    wide = {n: mx.concatenate([x[..., :1], x], axis=-1) for n, x in arrays.items()}
    return replace(case, **{n: x[..., 1:] for n, x in wide.items()})


def aslant() -> Case:
    """Cells of which only the first rows begin where 16 bytes do."""
    hood = Neighborhood.of(1, 3)
    case = case_of(Problem(hood, 1, (8,), 4, 2, 16, 16, 0.25, mx.float32, finer=(2,)))
    more = mx.concatenate([case.query, case.query[..., :2]], axis=-1)
    lies = mx.contiguous(more.swapaxes(1, 2))
    mx.eval(lies)
    return replace(case, query=lies.swapaxes(1, 2)[..., :16])


def check_padding(case: Case) -> dict[str, float]:
    """`check_attention` where no number stands behind the end of a sample."""
    problem = case.problem
    behind = mx.arange(problem.spatial[0]) >= case.lengths
    given = [
        mx.where(behind[..., None, None], math.nan, x)
        for x in (case.query, case.key, case.value, case.query)
    ]
    *arrays, d_out = given
    out, lse, stats = gpu.forward(problem, *arrays, None, case.lengths)
    d_lse = mx.where(behind[..., None], math.nan, 1.0) * mx.ones_like(lse)
    grads = gpu.backward(problem, *arrays, None, case.lengths, out, stats, d_out, d_lse)
    exact = [numpy(x) for x in (case.query, case.key, case.value)]
    ends = numpy(case.query), numpy(mx.ones_like(lse))
    wanted = [*case.reference.forward(*exact, None), *case.reference.backward(*exact, None, *ends)]
    names = ("out", "lse", "d_query", "d_key", "d_value")
    return errors(names, (out, lse, *grads[:3]), wanted[:5])


def check_packed(case: Case) -> dict[str, float]:
    """`check_attention` on views of one array, and with one array of gradients."""
    arrays = unpack(case.problem, pack(case.problem, case.query, case.key, case.value))
    out, lse, stats = gpu.forward(case.problem, *arrays, case.rpb, None)
    d_qkv, d_rpb = gpu.backward_packed(
        case.problem, *arrays, case.rpb, None, out, stats, case.query, lse
    )
    exact = [numpy(x) for x in (case.query, case.key, case.value, case.rpb)]
    wanted = case.reference.backward(*exact, numpy(case.query), numpy(lse))
    names = ("d_query", "d_key", "d_value", "d_rpb")
    return errors(names, (*unpack(case.problem, d_qkv), d_rpb), wanted)


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
    planes_alone = bool(file) and _for_planes(sources.source(file), start)
    for changes, wrong in checks(file, mutant, planes_alone):
        large = isinstance(wrong, partial) and len(wrong.args) > 2 and wrong.args[2][0] in LARGE
        settings = {"reconverges": large, "strict": False}
        found = None
        # Of a fault the launch says which.
        with install(**settings), changes, record() as launches, suppress(KernelFault):
            found = wrong()
        kinds = {r.kind for launch in launches for r in launch.reports}
        if found or kinds:
            return ", ".join(sorted(kinds | ({found} if found else set())))
    return ""


def _for_planes(text: str, place: int) -> bool:
    """Whether other cores leave it out."""
    parts = re.finditer(r"#if NA_PLANE.*?#(?:else|endif)", text, re.S)
    return any(part.start() < place < part.end() for part in parts)


if __name__ == "__main__":
    name, place, *change = sys.argv[1:] or ("", "0", "", "")
    reason = caught(name, int(place), *change)
    print(reason)
    sys.exit(bool(reason))

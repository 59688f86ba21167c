"""Mutants of our kernels: a planted defect must be seen, even where the numbers are right."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import mlx.core as mx
import pytest

from natten_zoo import metal as sources
from natten_zoo.metal import MATRIX, SCALAR_4, SCALAR_8, Core
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu import kernels
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import StrictError, install, record
from tests.ops.gpu.problems import MATRIX_2, Case, case_of, check_attention, worst

FORWARD, KEY, QUERY = (
    f"attention_{name}.metal" for name in ("forward", "backward_key", "backward_query")
)
BARRIER = r"threadgroup_barrier\(mem_flags::mem_threadgroup\);"
FIRST, LAST = rf"\A(.*?){BARRIER}", rf"\A(.*){BARRIER}"


class Mutant(NamedTuple):
    """A replacement by regular expression in a file of metal/, and what must give it away.

    `caught` is how the kind of a report begins, "numbers" or "strict". `on` names the
    problem of `CASES` that gives it away.
    """

    file: str
    pattern: str
    replacement: str
    caught: str
    core: Core = MATRIX
    on: str = "2-D"


MUTANTS = {
    # synchronisation
    "no barrier after staging": Mutant("stage.h", LAST, r"\1", "race-"),
    "no barrier before staging": Mutant("stage.h", FIRST, r"\1", "race-"),
    "no barrier after the tour": Mutant(FORWARD, FIRST, r"\1", "race-"),
    "no barrier in the key pass": Mutant(KEY, FIRST, r"\1", "race-"),
    "no barrier in the query pass": Mutant(QUERY, LAST, r"\1", "race-"),
    "barriers without memory": Mutant("stage.h", r"mem_threadgroup\)", "mem_none)", "race-"),
    "simdgroup's barrier for a threadgroup's": Mutant(
        "stage.h", LAST, r"\1simdgroup_barrier(mem_flags::mem_threadgroup);", "race-"
    ),
    "next slab told too early": Mutant("stage.h", r"% 3\] = na", "% 2] = na", "race-", on="long"),
    "no barrier between two queries of a bin": Mutant(
        "rows.h", r"(void na_add_to_bins.*?)simdgroup_barrier\([^;]*\);", r"\1", "race-"
    ),
    "return before a barrier": Mutant(
        FORWARD, "const na_seen seen", r"if (!mine[0].live) return; \g<0>", "barrier-"
    ),
    "bias read by some lanes": Mutant(
        "rows.h",
        r"const float more = na_bias\(bias\[mask == 0\.0f \? bin : 0\]\);",
        "float more = 0.0f; if (mask == 0.0f) more = na_bias(bias[bin]);",
        "diverged-",
        SCALAR_4,
    ),
    "rows told after a branch": Mutant(
        "rows.h",
        r"(times\[h\] = na_held\(factor, h\);)\n *\}\n *NA_UNROLL[^{]*\{",
        r"\1",
        "diverged-",
        SCALAR_4,
    ),
    # bounds
    "slab longer than its memory": Mutant(
        "slab.h",
        r"na_min\(capacity, (na_axis_of\(p, a\)\[NA_REACH\])\)",
        r"2 * \1",
        "out-of-bounds",
    ),
    "threadgroup arrays aligned for their elements": Mutant(
        "dialect_metal.h", r"alignas\(16\) threadgroup", "alignas(4) threadgroup", "misaligned"
    ),
    "slab twice as large": Mutant(FORWARD, "= SLAB /", "= 2 * SLAB /", "threadgroup-memory"),
    "row beyond the array loaded": Mutant("rows.h", r"live && \(", "(", "out-of-bounds"),
    "index beyond an array": Mutant(
        "softmax.h",
        r"t < NA_PER_ROW(; t\+\+\) \{\s+const float one)",
        r"t <= NA_PER_ROW\1",
        "array-out-of-bounds",
    ),
    # what is read, and what is written
    "token not clamped to the slab": Mutant(
        "walk.h", r"na_min\((across [^;]*), walk\.width - 1\)", r"\1", "uninit-"
    ),
    "last round of staging missed": Mutant(
        "stage.h", r"at < rounds\.count; at", "at < rounds.count - at_once; at", "uninit-"
    ),
    "marks not staged": Mutant(KEY, "marks, tour", "(const DEV float*)0, tour", "uninit-"),
    "bins not cleared": Mutant("rows.h", r"sums\[i\] = 0\.0f;", ";", "uninit-"),
    "sum not initialised": Mutant(FORWARD, r"na_clear<FV>\(acc_o\);", "", "uninitialised-value"),
    "padding queries stored": Mutant(
        "rows.h", r"if \(!home\[h\]\.stored\) continue;", "", "race-WW"
    ),
    "LSE stored by every lane": Mutant(
        FORWARD, r" \|\| me\.column \+ me\.part != 0\)", ")", "race-WW"
    ),
    # types, and what only the numbers tell
    "slab passed as device memory": Mutant(KEY, r"\(s, k, queries \+", "(s, k, query +", "strict"),
    "row summed over the wrong lanes": Mutant(
        "simdgroup.h", r"x \+ na_lane_xor\(x, NA_SECOND_LANE", "x + na_lane_xor(x, 4", "numbers"
    ),
    "window one key too short": Mutant(
        "team.h", r"seen\.last - seen\.first;", "seen.last - seen.first - 1;", "numbers"
    ),
    "inverse window one query too short": Mutant(
        "window.h", r"key \+ middle \+ 1", "key + middle", "numbers"
    ),
    "reference too far below the logits": Mutant(
        "softmax.h", r"NA_SLACK 8\.0f", "NA_SLACK 200.0f", "numbers", on="climbing"
    ),
    "keys beyond a column's end seen": Mutant(
        "walk.h", r"if \(SHAPE::PASSES\)  //", "if (false)  //", "numbers", on="long"
    ),
    "bias pitch from the last axis alone": Mutant(
        "arrays.h",
        r"(na_table na_table_of.*?)na_axis_of\(p, a\)\[NA_KERNEL\]",
        r"\1na_axis_of(p, 2)[NA_KERNEL]",
        "out-of-bounds",
        on="3-D",
    ),
    "products in another order": Mutant(
        QUERY,
        r"large\[h\] = na_is_large\(softmax\[h\]\)",
        "large[h] = false",
        "numbers",
        SCALAR_4,
        "large",
    ),
    # queries on a finer map
    "queries of every cell's first place": Mutant(
        "tile.h",
        r"out0 \* finer \+ source\.head - rest \* finer",
        "out0 * finer",
        "race-",
        on="finer",
    ),
    "places of another head's cells": Mutant(
        "arrays.h", r"ahead\.value \+= place [^;]*;", "", "numbers", on="finer"
    ),
    "marks of another place": Mutant(
        "arrays.h", r"pitch \*= axis\[NA_OUTPUTS\];", "", "numbers", on="finer"
    ),
    "heads of the problem for those of arrays": Mutant(
        "tile.h", r"FINER \? NA_QUERY_HEADS : NA_HEADS", "NA_HEADS", "out-of-bounds", on="finer"
    ),
    # teams of few lanes
    "partners of another team": Mutant(
        "core_scalar.h", r"return h \+ t", "return h + NA_TEAM + t", "simd-shuffle-", SCALAR_4
    ),
    "a row told by one lane of its team": Mutant(
        "core_scalar.h",
        r"(void na_accumulate.*?)const float weight = ([^;]*);",
        r"\1float weight = 0.0f; if (me.row == h) weight = \2;",
        "simd-shuffle-",
        SCALAR_4,
    ),
    "tokens of the other half left out": Mutant(
        "core_scalar.h", r"return h \+ t / 2 \* 4", "return h + t * 0", "numbers", SCALAR_8
    ),
    "channels of the neighbor": Mutant(
        "core_scalar.h", r"me\.index \* na_run", "(me.index ^ 1) * na_run", "numbers", SCALAR_4
    ),
    "a vote of each lane": Mutant(
        "core_scalar.h",
        r"bits < NA_TEAM; bits \*= 2\) any",
        "bits < 1; bits *= 2) any",
        "simd-shuffle-",
        SCALAR_4,
    ),
    # teams of several simdgroups
    "no barrier between parts": Mutant("parts.h", FIRST, r"\1", "race-", MATRIX_2),
    "parts left where others are read": Mutant(
        "parts.h", r"turn = NA_HALF - turn;", "", "race-", MATRIX_2
    ),
    "no barrier before pace is kept": Mutant("parts.h", LAST, r"\1", "race-", MATRIX_2),
    "a team at its own pace": Mutant(FORWARD, "na_keep_pace[^;]*;", ";", "barrier-", MATRIX_2),
    "a team of no tokens reads its own": Mutant(
        "parts.h", r"walk\.first = walk\.gap = 0;", "", "out-of-bounds", MATRIX_2, "long"
    ),
    "sums of a part alone": Mutant(
        QUERY, r"na_add_parts<NA_ROWS>\(delta[^;]*;", "", "numbers", MATRIX_2
    ),
    "LSE stored by every part": Mutant(
        FORWARD, r"me\.column \+ me\.part", "me.column", "race-WW", MATRIX_2
    ),
}

DEVICES = itertools.count()

# One of each way to be caught; the others are marked slow.
SAMPLE = (
    "no barrier after staging",
    "return before a barrier",
    "row beyond the array loaded",
    "index beyond an array",
    "slab twice as large",
    "marks not staged",
    "sum not initialised",
    "LSE stored by every lane",
    "slab passed as device memory",
    "window one key too short",
    "partners of another team",
    "channels of the neighbor",
    "threadgroup arrays aligned for their elements",
    "bias read by some lanes",
)


@contextlib.contextmanager
def mutated(mutant: Mutant | None, core: Core) -> Iterator[None]:
    """Kernels are built from changed sources, with several teams to a threadgroup."""
    original: Callable[[str], str] = sources.source

    def source(name: str) -> str:
        text = original(name)
        if not mutant or name != mutant.file:
            return text
        text, count = re.subn(mutant.pattern, mutant.replacement, text, flags=re.S)
        assert count, f"{name} no longer has {mutant.pattern!r}: adapt this mutant"
        return text

    # A device of its own: what is found out about this text does not hold for another.
    generation = f"mutant {next(DEVICES)}"
    device = replace(current(), core=core, enough_threadgroups=1, generation=generation)
    with (
        mock.patch.object(sources, "source", source),
        mock.patch.object(sources, "header", sources.header.__wrapped__),
        mock.patch.object(kernels, "text", kernels.text.__wrapped__),
        mock.patch.object(kernels, "_built", kernels._built.__wrapped__),
        use_device(device),
    ):
        yield


def usual() -> Case:
    hood = Neighborhood.of(2, (5, 7))
    return case_of(Problem(hood, 1, (13, 19), 1, 1, 16, 16, 0.25, mx.float32, has_rpb=True))


def solid() -> Case:
    hood = Neighborhood.of(3, (2, 3, 4))
    return case_of(Problem(hood, 1, (4, 6, 9), 1, 1, 8, 8, 0.25, mx.float32, has_rpb=True))


def climbing() -> Case:
    """Each logit is 2^8 times the one before it, all through a window of 31 keys."""
    problem = Problem(Neighborhood.of(1, 31), 1, (40,), 1, 1, 8, 8, 1.0, mx.float32)
    steps = mx.zeros((1, 40, 1, 8)).at[..., 0].add(8 * math.log(2) * mx.arange(40)[None, :, None])
    first = mx.zeros((1, 40, 1, 8)).at[..., 0].add(1.0)
    return replace(case_of(problem), query=first, key=steps)


def long() -> Case:
    """More keys, and queries of two heads, than a slab has room for, which cuts a column."""
    problem = Problem(Neighborhood.of(1, 180), 1, (300,), 2, 1, 64, 64, 0.1, mx.float32)
    return case_of(problem)


def large() -> Case:
    """Logits of 4e8: in 2-D, where queries lie otherwise among the lanes than keys."""
    problem = Problem(Neighborhood.of(2, (3, 5)), 1, (13, 19), 1, 1, 16, 16, 0.25, mx.float32)
    case = case_of(problem)
    return replace(case, query=1e4 * case.query, key=1e4 * case.key)


def finer() -> Case:
    """Cells of 3 x 2 queries, two heads for each of the keys'."""
    hood, dtype = Neighborhood.of(2, (3, 4), dilation=(2, 1)), mx.float32
    return case_of(Problem(hood, 2, (7, 9), 24, 2, 16, 8, 0.25, dtype, has_rpb=True, finer=(3, 2)))


CASES = {
    "2-D": usual, "3-D": solid, "climbing": climbing, "long": long, "large": large, "finer": finer,
}  # fmt: skip


def outcome(mutant: Mutant | None, core: Core, order: int = 0, on: str = "2-D") -> set[str]:
    """What gives a mutant away: kinds of reports, "numbers", "strict"; nothing for none."""
    settings = {"raise_faults": False, "order": order, "reconverges": False}
    if on == "large" and not core.whole:
        settings["reconverges"] = True  # core_scalar.h says why
    with install(**settings), mutated(mutant, core), record() as launches:
        try:
            errors = check_attention(CASES[on]())
        except StrictError:
            return {"strict"}
    wrong = worst(errors, mx.float32)
    kinds = {r.kind for launch in launches for r in launch.reports}
    return kinds | ({"numbers"} if wrong else set())


@pytest.mark.parametrize(
    "core", [MATRIX, MATRIX_2, SCALAR_4, SCALAR_8], ids=lambda c: f"{c.name}{c.team_threads}"
)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_kernels_as_they_are(core: Core, order: int) -> None:
    assert not outcome(None, core, order)


@pytest.mark.parametrize(
    "on",
    [name if name == "climbing" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_kernels_are_right_where_mutants_are_wrong(on: str) -> None:
    assert not outcome(None, MATRIX, on=on)


def test_the_sample_has_every_way_to_be_caught() -> None:
    assert {MUTANTS[name].caught for name in SAMPLE} == {m.caught for m in MUTANTS.values()}


@pytest.mark.parametrize(
    "name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS]
)
def test_mutant(name: str) -> None:
    mutant = MUTANTS[name]
    found = outcome(mutant, mutant.core, on=mutant.on)
    assert any(kind.startswith(mutant.caught) for kind in found), found
    if mutant.caught == "numbers":
        assert found == {"numbers"}, "reports catch it by now: say so"

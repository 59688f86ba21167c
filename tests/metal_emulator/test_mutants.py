"""Mutants of our kernels: a planted defect must be seen, even where the numbers are right."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import mlx.core as mx
import pytest

from natten_zoo import metal as sources
from natten_zoo.ops import Neighborhood, gpu_kernels, gpu_plan
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import StrictError, install, record
from tests.ops.gpu.problems import case_of, check_attention, worst

FORWARD, KEY, QUERY = (
    f"attention_{name}.metal" for name in ("forward", "backward_key", "backward_query")
)
BARRIER = r"threadgroup_barrier\(mem_flags::mem_threadgroup\);"
FIRST, LAST = rf"\A(.*?){BARRIER}", rf"\A(.*){BARRIER}"


class Mutant(NamedTuple):
    """A replacement by regular expression in a file of metal/, and what must give it away.

    ``caught`` is how the kind of a report begins, "numbers" or "strict".
    """

    file: str
    pattern: str
    replacement: str
    caught: str


MUTANTS = {
    # synchronisation
    "no barrier after staging": Mutant(FORWARD, LAST, r"\1", "race-"),
    "no barrier before staging": Mutant(FORWARD, FIRST, r"\1", "race-"),
    "no barrier in the key pass": Mutant(KEY, LAST, r"\1", "race-"),
    "no barrier in the query pass": Mutant(QUERY, LAST, r"\1", "race-"),
    "barriers without memory": Mutant(FORWARD, "mem_threadgroup", "mem_none", "race-"),
    "simdgroup's barrier for a threadgroup's": Mutant(
        FORWARD, LAST, r"\1simdgroup_barrier(mem_flags::mem_threadgroup);", "race-"
    ),
    "no barrier between two queries of a bin": Mutant(
        "rows.h", r"(void na_add_to_bins.*?)simdgroup_barrier\([^;]*\);", r"\1", "race-"
    ),
    "return before a barrier": Mutant(
        FORWARD, "const na_box seen", r"if (!mine[0].live) return; \g<0>", "barrier-"
    ),
    # bounds
    "slab longer than its memory": Mutant(
        FORWARD, r"na_slab_size<EIGHT>\(seen, CAPACITY", r"\g<0> * 2", "out-of-bounds"
    ),
    "slab twice as large": Mutant(FORWARD, "= SLAB /", "= 2 * SLAB /", "threadgroup-memory"),
    "row beyond the array loaded": Mutant("rows.h", r"live && \(", "(", "out-of-bounds"),
    "index beyond an array": Mutant(
        FORWARD,
        r"e < 2 \* NA_ROWS; e\+\+\) base",
        "e <= 2 * NA_ROWS; e++) base",
        "array-out-of-bounds",
    ),
    # what is read, and what is written
    "token not clamped to the slab": Mutant(
        "walk.h", r"na_min\(across, walk\.width - 1\)", "across", "uninit-"
    ),
    "last round of staging missed": Mutant(
        "slab.h", r"n < rounds\.count; n", "n < rounds.count - TOKENS; n", "uninit-"
    ),
    "LSE and delta not staged": Mutant(KEY, r"= \{lse, delta\}", "= {0, 0}", "uninit-"),
    "bins not cleared": Mutant("rows.h", r"sums\[i\] = 0\.0f;", ";", "uninit-"),
    "sum not initialised": Mutant(FORWARD, r"na_clear<FV>\(sum\);", "", "uninitialised-value"),
    "padding queries stored": Mutant(
        FORWARD, r"if \(!mine\[h\]\.stored\) continue;", "", "race-WW"
    ),
    "LSE stored by every lane": Mutant(FORWARD, r"if \(me\.column == 0\)\s+lse", "lse", "race-WW"),
    # types, and what only the numbers tell
    "slab passed as device memory": Mutant(
        KEY, r"\(queries, query, ", "(query, queries, ", "strict"
    ),
    "row summed over the wrong lanes": Mutant(
        "dialect_metal.h", r"x \+ simd_shuffle_xor\(x, 8\)", "x + simd_shuffle_xor(x, 4)", "numbers"
    ),
    "window one key too short": Mutant(
        "tile.h", r"keys\.last - keys\.first;", "keys.last - keys.first - 1;", "numbers"
    ),
    "inverse window one query too short": Mutant(
        "window.h", r"key \+ middle \+ 1", "key + middle", "numbers"
    ),
}


@contextlib.contextmanager
def mutated(mutant: Mutant | None) -> Iterator[None]:
    """Kernels are built from changed sources, with several simdgroups to a threadgroup."""
    original: Callable[[str], str] = sources.source

    def source(name: str) -> str:
        text = original(name)
        if not mutant or name != mutant.file:
            return text
        text, count = re.subn(mutant.pattern, mutant.replacement, text, flags=re.S)
        assert count, f"{name} no longer has {mutant.pattern!r}: adapt this mutant"
        return text

    def forget() -> None:
        sources.header.cache_clear()
        gpu_kernels._function.cache_clear()
        gpu_kernels.text.cache_clear()
        gpu_plan.plan.cache_clear()

    with (
        mock.patch.object(sources, "source", source),
        mock.patch.object(gpu_plan, "ENOUGH_GROUPS", 1),
        mock.patch.multiple(gpu_kernels, _proven=set(), _broken={}),
    ):
        forget()
        try:
            yield
        finally:
            forget()


def outcome(mutant: Mutant | None, order: int = 0) -> set[str]:
    """What gives a mutant away: kinds of reports, "numbers", "strict"; nothing for none."""
    hood = Neighborhood.of(2, (5, 7))
    problem = Problem(hood, 1, (13, 19), 1, 1, 16, 16, 0.25, mx.float32, has_rpb=True)
    with install(raise_faults=False, order=order), mutated(mutant), record() as launches:
        try:
            wrong = worst(check_attention(case_of(problem)), mx.float32)
        except StrictError:
            return {"strict"}
    kinds = {r.kind for launch in launches for r in launch.reports}
    return kinds | ({"numbers"} if wrong else set())


@pytest.mark.parametrize("order", [0, 1, 2])
def test_kernels_as_they_are(order: int) -> None:
    assert not outcome(None, order)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_mutant(mutant: Mutant) -> None:
    found = outcome(mutant)
    assert any(kind.startswith(mutant.caught) for kind in found), found
    if mutant.caught == "numbers":
        assert found == {"numbers"}, "reports catch it by now: say so"

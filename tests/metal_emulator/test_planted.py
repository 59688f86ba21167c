"""Faults that share a build: which text they make, and that each is seen by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from natten_zoo import metal
from scripts.mutants import ROOT, Mutant, mutants
from tests.metal_emulator import planted

SEEN = [  # at the first check
    ("walk.h", "const int low = na_max(", "max"),
    ("walk.h", "if (a == AXIS) walk.down = pitch;", "=="),
    ("stage.h", "rounds.count = 1;", "1"),
]
SCRIPT = """
from tests.metal_emulator.planted import verdicts
from tests.metal_emulator.test_planted import SEEN, of
print(sorted(n for n, reason in verdicts(dict(enumerate((of(*x) for x in SEEN), 1)), 2) if reason))
"""


def of(file: str, line: str, before: str) -> Mutant:
    """The fault of a line."""
    found = mutants(file, metal.source(file))
    return next(m for m in found if m.line.startswith(line) and m.before == before)


def test_the_text():
    text = metal.source("walk.h")
    maximum, minimum = (of("walk.h", f"const int {x} = na_m", y)
                        for x, y in (("low", "max"), ("high", "min")))  # fmt: skip
    equal = of("walk.h", "if (a == AXIS) walk.down = pitch;", "==")
    number = of("walk.h", "size[a] = na_max(high - low, 0);", "0")
    both = of("walk.h", "walk.open = walk.open && seen.all", "&&")
    there = {1: maximum, 2: minimum, 3: equal, 4: number}
    with planted.planted(there) as fit:
        changed = metal.source("walk.h")
    assert fit == set(there) and metal.source("walk.h") == text
    for line in (
        "const int low = na_planted_max<1>(seen.any.low[a], slab.low[a]);",
        "const int high = na_planted_min<2>(seen.any.high[a], slab.high[a]);",
        "if (a == na_same{3} == AXIS) walk.down = pitch;",
        "size[a] = na_max(high - low, (na_planted(4) ? 1 : 0));",
    ):
        assert line in changed
    assert not planted.rewritten(5, both)


def test_what_the_compiler_must_know_is_left_out():
    constant = of("walk.h", "constexpr int PIECE", "2")
    with planted.planted({1: constant}) as fit:
        assert not fit


def test_those_of_which_clang_complains():
    message = """CompileError: header.metal:12:5: error: array size is not a constant
   12 |   int width[NA_PARTS < na_more{14} < 1 ? (na_planted(15) ? 3 : 2) : 1];
      |             ^~~~~
header.metal:9:7: note: of na_planted_max<16>"""
    assert planted.refused(message) == {14, 15}


@pytest.mark.slow
def test_each_is_seen_by_itself():
    """In a process that has not computed yet: those that it starts can."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[1, 2, 3]", run.stdout + run.stderr

"""What gives a changed kernel away in the emulator: problems of four kinds, until one does.

    python -m tests.metal_emulator.judge tile.h 1234 '<' '<='

The file of metal/ has the third argument at that place and gets the fourth. The exit status is 1
if something is wrong, and the last line says what. scripts/mutants.py asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from tests.metal_emulator import StrictError, install, record
from tests.metal_emulator.test_mutants import CASES, Mutant, mutated
from tests.ops.gpu.problems import (
    FAMILIES,
    Case,
    check_attention,
    check_unfused,
    random_case,
    worst,
)

# By index in FAMILIES: 2-D and 3-D with a bias on matrices, 2-D and 1-D on single lanes.
CHOSEN = (4, 9, 11, 10)
EACH = 4


def checks(file: str) -> list[Callable[[Case], dict[str, float]]]:
    """The operations that a file has a part in."""
    if file.startswith("attention_"):
        return [check_attention]
    return [check_unfused] if file in ("qk.metal", "av.metal", "av_backward_value.metal") else [
        check_attention, check_unfused,
    ]  # fmt: skip


def caught(file: str, start: int, before: str, after: str) -> str:
    """Kinds of reports, "numbers" or an error; empty if nothing is wrong."""
    # A pattern for this one place: everything before it by length.
    pattern = rf"\A([\s\S]{{{start}}}){re.escape(before)}" if file else ""
    mutant = Mutant(file, pattern, rf"\g<1>{after}", "") if file else None
    families = [FAMILIES[i] for i in CHOSEN]
    for check in checks(file):
        for core, dtype, cases in [
            *((f.core, f.dtype, [lambda f=f, s=s: random_case(f, s) for s in range(EACH)])
              for f in families),
            (FAMILIES[0].core, FAMILIES[0].dtype, [CASES["climbing"], CASES["long"]]),
        ]:  # fmt: skip
            settings = {"raise_faults": False, "reconverges": False}
            with install(**settings), mutated(mutant, core), record() as launches:
                for make in cases:
                    try:
                        found = worst(check(make()), dtype)
                    except StrictError:
                        return "strict"
                    kinds = {r.kind for launch in launches for r in launch.reports}
                    if found or kinds:
                        return ", ".join(sorted(kinds | ({found} if found else set())))
    return ""


if __name__ == "__main__":
    name, place, *texts = sys.argv[1:] or ("", "0", "", "")
    reason = caught(name, int(place), *texts)
    print(reason)
    sys.exit(bool(reason))

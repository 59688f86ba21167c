"""Whether an extension computes what it should: random problems, quickly, until one is wrong.

    python -m tests.ops.native.judge path/to/_ext.so

The exit status says it; what was wrong stands in the last line. scripts/mutants.py asks.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

os.environ["NATTEN_ZOO_THREADS"] = "3"
NAME = "natten_zoo.ops.native._ext"


def load(path: str) -> None:
    """Have the tier use this extension."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec and spec.loader
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])


def wrong() -> Iterator[str]:
    import mlx.core as mx

    from natten_zoo.ops import backend
    from tests.ops.cases import CASES, TOLERANCE, attention_error
    from tests.ops.extremes import worst
    from tests.ops.test_twenty_thousand import problem

    for name in ("large kernel", "all strides", "varlen", "2-D"):
        if max(attention_error(CASES[name], "nanobind").values()) > TOLERANCE:
            yield name
    for number in range(30_000, 30_300):
        case = problem(number)
        if case.kind == "extra" or backend.why_not("nanobind", case.problem):
            continue
        for name, error in worst(case, "nanobind").items():
            if not error <= 1:
                yield f"problem({number}): {name} by {error:.3g} times"
    mx.synchronize()


if __name__ == "__main__":
    load(sys.argv[1])
    first = next(wrong(), "")
    print(first)
    sys.exit(bool(first))

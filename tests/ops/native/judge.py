"""Whether an extension computes what it should: random problems, quickly, until one is wrong.

    python -m tests.ops.native.judge path/to/_ext.so

The exit status says it; what was wrong stands in the last line. scripts/mutants.py asks.
"""

from __future__ import annotations

import importlib.util
import math
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
    yield from wrong_gelu()
    for number in range(30_000, 30_300):
        case = problem(number)
        if case.kind == "extra" or backend.why_not("nanobind", case.problem):
            continue
        for name, error in worst(case, "nanobind").items():
            if not error <= 1:
                yield f"problem({number}): {name} by {error:.3g} times"
    mx.synchronize()


def wrong_gelu() -> Iterator[str]:
    """x Phi(x) and its slope: in float32 with the tail's digits, in the others as they round."""
    import mlx.core as mx
    import numpy as np

    from natten_zoo.ops import native

    for dtype, digits in ((mx.float32, 2e-6), (mx.float16, 1e-3), (mx.bfloat16, 8e-3)):
        given = mx.linspace(-12, 14, 40_001).astype(dtype)  # more than all threads have at once
        x = np.array(given.astype(mx.float32), np.float64)
        below = np.array([math.erfc(-v) / 2 for v in x / math.sqrt(2)])
        slope = below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        (out,), (d_x,) = mx.vjp(lambda v: [native.gelu(v)], [given], [mx.full(x.shape, 3.0, dtype)])
        out, d_x = (np.array(y.astype(mx.float32), np.float64) for y in (out, d_x))
        tail = 1e-5 if dtype == mx.float32 else digits
        least = 1e-30 if dtype == mx.float32 else 1e-7
        if not (np.abs(out - x * below) <= np.maximum(tail * np.abs(x * below), least)).all():
            yield f"gelu of {dtype}"
        if not np.abs(d_x - 3 * slope).max() <= 3 * digits:
            yield f"the slope of gelu of {dtype}"


if __name__ == "__main__":
    load(sys.argv[1])
    first = next(wrong(), "")
    print(first)
    sys.exit(bool(first))

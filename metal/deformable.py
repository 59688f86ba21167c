"""The kernels of deformable attention, whose texts know nothing of neighborhoods.

They share the words of both dialects with the others, and nothing else: the samples of a query may
lie anywhere, so that there is no tile of keys to hold.
"""

from __future__ import annotations

from functools import cache

from . import source

# The arrays of each kernel, in the order in which it is given them: inputs and outputs.
KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deformable_forward": (("values", "points", "weights", "maps", "params"), ("out",)),
    "deformable_backward_point": (
        ("values", "points", "weights", "d_out", "maps", "params"),
        ("d_points", "d_weights"),
    ),
    "deformable_backward_value": (
        ("points", "weights", "d_out", "keys", "order", "maps", "params"),
        ("d_values",),
    ),
}
FLOAT32 = ("points", "d_points")  # whatever the dtype of the others
INT32 = ("keys", "order", "maps", "params")
THREADS = 128  # of a threadgroup


@cache
def header(dialect: str, lanes: int) -> str:
    """All that precedes a body.

    Args:
        dialect: `"metal"` or `"cuda"`.
        lanes: Threads that share a row: a power of two, 32 at most.
    """
    defined = {"NA_THREADS": THREADS, "NA_RESIDENT": 1, "NA_TEAM": lanes, "NA_PLANE": 0}
    lines = [f"#define {name} {value}" for name, value in defined.items()]
    return "\n".join([*lines, source(f"dialect_{dialect}.h"), source("sampling.h")])

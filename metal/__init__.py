"""The kernel sources: one text for ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``.

Each ``*.metal`` file is the body of one kernel and names its inputs, outputs and template arguments
at the top; the headers come before every body. docs/kernels.md explains the design.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

HEADERS = ("arithmetic.h", "window.h", "tile.h", "slab.h", "walk.h", "rows.h")


@cache
def source(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def body(kernel: str) -> str:
    """The body of a kernel."""
    return source(f"{kernel}.metal")


@cache
def header(dialect: str, rows: int, resident: int = 1) -> str:
    """All that precedes a body.

    Args:
        dialect: ``"metal"`` or ``"cuda"``.
        rows: Height of a fragment, in eights: queries that a simdgroup computes at once.
        resident: Threadgroups that a core is to hold at once; only CUDA's compiler can be told.
    """
    defined = {"NA_ROWS": rows} | ({"NA_RESIDENT": resident} if dialect == "cuda" else {})
    parts = (source(name) for name in (f"dialect_{dialect}.h", *HEADERS))
    return "\n".join([*(f"#define {k} {v}" for k, v in defined.items()), *parts])

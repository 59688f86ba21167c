"""The kernel sources: one text for ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``.

Each ``*.metal`` file is the body of one kernel and names its inputs, outputs and template arguments
at the top; the headers come before every body. docs/kernels.md explains the design.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

HEADERS = ("arithmetic.h", "window.h", "tile.h", "slab.h", "walk.h", "rows.h")


@dataclass(frozen=True)
class Core:
    """Who multiplies: how many lanes work together as a team, on how much at once (fragment.h).

    Attributes:
        name: Of its header, ``core_{name}.h``.
        lanes: Of a team.
        rows: Of a team: queries, or keys in the pass over keys.
        tokens: Of a fragment.
        threads: Of the largest threadgroup.
    """

    name: str
    lanes: int
    rows: int
    tokens: int
    threads: int

    @property
    def height(self) -> int:
        """Rows that a lane looks after: of each it has two tokens."""
        return self.rows * self.tokens // (2 * self.lanes)

    @property
    def whole(self) -> bool:
        """Whether a team is a whole simdgroup."""
        return self.lanes == 32

    @property
    def headers(self) -> tuple[str, ...]:
        """What the kernels need of it."""
        own = f"core_{self.name}.h"
        return (own, "simdgroup.h") if self.whole else (own,)

    @property
    def constants(self) -> dict[str, int]:
        """Its numbers, as the sources call them."""
        held = self.height if self.whole else self.rows
        wide = 8 * self.rows // (self.lanes * held)
        names = ("NA_TEAM", "NA_TOKENS", "NA_ROWS", "NA_HELD", "NA_WIDE", "NA_THREADS")
        values = (self.lanes, self.tokens, self.height, held, wide, self.threads)
        return dict(zip(names, values, strict=True))


MATRIX = Core("matrix", lanes=32, rows=8, tokens=8, threads=256)  # Metal
MATRIX_16 = Core("matrix", lanes=32, rows=16, tokens=8, threads=128)
TENSOR = Core("tensor", lanes=32, rows=16, tokens=8, threads=128)  # CUDA
SCALAR_4 = Core("scalar", lanes=4, rows=4, tokens=2, threads=128)  # either
SCALAR_8 = Core("scalar", lanes=8, rows=4, tokens=4, threads=128)


@cache
def source(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def body(kernel: str) -> str:
    """The body of a kernel."""
    return source(f"{kernel}.metal")


@cache
def header(dialect: str, core: Core, resident: int = 1) -> str:
    """All that precedes a body.

    Args:
        dialect: ``"metal"`` or ``"cuda"``.
        core: Who multiplies.
        resident: Threadgroups that a core is to hold at once; only CUDA's compiler can be told.
    """
    defined = core.constants | ({"NA_RESIDENT": resident} if dialect == "cuda" else {})
    names = (f"dialect_{dialect}.h", "fragment.h", *core.headers, *HEADERS)
    return "\n".join([*(f"#define {k} {v}" for k, v in defined.items()), *map(source, names)])

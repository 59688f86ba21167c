"""The kernel sources: one text for `mx.fast.metal_kernel` and `mx.fast.cuda_kernel`.

Each `*.metal` file is the body of one kernel and names its inputs, outputs and template arguments
at the top; the headers come before every body. docs/kernels.md explains the design. What a caller
has to know of the texts stands here: the arrays of each kernel (`KERNELS`), which core's
headers and numbers it is built with (`Core`), and where a number lies in the parameter block
(`enumerators`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import mlx.core as mx


@dataclass(frozen=True)
class Kernel:
    """The arrays of a kernel, as the first lines of its file name them.

    Attributes:
        inputs: In the order in which the kernel is given them.
        outputs: Each with its size for a problem of one token: a template argument or a number.
        passing: The inputs that have a row for each token that a tile sees pass by. All others, and
            the outputs, have one for each of a tile's own rows.
    """

    inputs: tuple[str, ...]
    outputs: Mapping[str, str | int]
    passing: tuple[str, ...]


_COMMON = ("params", "lengths", "rpb")
KERNELS = {
    "attention_forward": Kernel(
        ("query", "key", "value", *_COMMON), {"out": "DV", "lse": 1, "stats": 2}, ("key", "value")
    ),
    "attention_backward_query": Kernel(
        ("query", "key", "value", "out", "d_out", "stats", "d_lse", *_COMMON),
        {"d_query": "D", "marks": 4, "d_rpb": 1},
        ("key", "value"),
    ),
    "attention_backward_key": Kernel(
        ("query", "key", "value", "d_out", "marks", "d_query", *_COMMON),
        {"d_key": "D", "d_value": "DV"},
        ("query", "d_out", "marks"),
    ),
    "qk": Kernel(("query", "key", *_COMMON), {"logits": 1}, ("key",)),
    "av": Kernel(("attn", "value", *_COMMON), {"out": "DV", "d_rpb": 1}, ("value",)),
    "av_backward_value": Kernel(("attn", "d_out", *_COMMON), {"d_value": "DV"}, ("attn", "d_out")),
}
FLOAT32 = ("rpb", "lse", "d_lse", "stats", "marks", "d_rpb")  # whatever the dtype of the others
INT32 = ("params", "lengths")
# What the kernels want contiguous; of all other inputs they are told the strides.
CONTIGUOUS = ("params", "lengths", "rpb", "stats", "d_lse", "marks", "attn")

HEADERS = (
    *("arithmetic.h", "window.h", "tile.h", "arrays.h", "team.h"),
    *("slab.h", "stage.h", "walk.h", "parts.h", "rows.h", "softmax.h"),
)


@cache
def kernel_without(name: str, absent: frozenset[str]) -> Kernel:
    """A kernel with the arrays that a problem has."""
    whole = KERNELS[name]
    inputs = tuple(array for array in whole.inputs if array not in absent)
    outputs = {array: size for array, size in whole.outputs.items() if array not in absent}
    return replace(whole, inputs=inputs, outputs=outputs)


@dataclass(frozen=True)
class Core:
    """Who multiplies: how many lanes work together as a team, on how much at once (fragment.h).

    Attributes:
        name: Of its header, `core_{name}.h`.
        lanes: Of a team, or of each of its parts.
        rows: Of a team: queries, or keys in the pass over keys.
        tokens: Of a fragment.
        threads: Of the largest threadgroup.
        has_bfloat: Whether it multiplies them as they are.
        beside: Neighbors that a lane has of a row, of a team that is a whole simdgroup.
        depth: Channels of a fragment of rows, which are padded to a multiple of them.
        on_trial: Whether a device must first be seen to multiply as this text expects it to; it
            takes numbers of 16 bits alone (ops/gpu/trial.py).
        parts: Simdgroups of a team, each with its own channels of all rows (parts.h).
        plane: Tokens of a slab whose channels lie in planes of eight, for cores that multiply it
            where it lies; odd, so that a token's planes are in different banks. 0: rows.
        pace: What a team's walk costs beside one of the same tokens by the device's other cores.
    """

    name: str
    lanes: int
    rows: int
    tokens: int
    threads: int
    has_bfloat: bool = True
    beside: int = 2
    depth: int = 8
    on_trial: bool = False
    parts: int = 1
    plane: int = 0
    pace: float = 1.0

    def takes(self, dtype: mx.Dtype) -> bool:
        """Whether it multiplies such numbers."""
        return not self.on_trial or dtype.size == 2

    def padded(self, dim: int) -> int:
        """Channels of a row with `dim` of them, filled up with zeros."""
        at_once = self.depth * self.parts
        return -(-dim // at_once) * at_once

    @property
    def team_threads(self) -> int:
        """Of a team."""
        return self.lanes * self.parts

    @property
    def per_row(self) -> int:
        """Tokens of a fragment that a lane has of each row that it looks after."""
        return self.tokens // 4 if self.whole else 2

    @property
    def height(self) -> int:
        """Rows that a lane looks after."""
        return self.rows * self.tokens // (self.per_row * self.lanes)

    @property
    def whole(self) -> bool:
        """Whether a team is one whole simdgroup, or several."""
        return self.lanes >= 32

    @property
    def headers(self) -> tuple[str, ...]:
        """What the kernels need of it."""
        own = f"core_{self.name}.h"
        return (own, "simdgroup.h") if self.whole else (own,)

    @property
    def constants(self) -> dict[str, int]:
        """Its numbers, as the sources call them."""
        held = self.height if self.whole else self.rows
        wide = self.depth * self.rows // (self.lanes * held)
        return {
            "NA_TEAM": self.lanes,
            "NA_PARTS": self.parts,
            "NA_TOKENS": self.tokens,
            "NA_ROWS": self.height,
            "NA_PER_ROW": self.per_row,
            "NA_BESIDE": self.beside,
            "NA_DEPTH": self.depth,
            "NA_LOOKUPS": 2 if self.plane else self.tokens // 8 if self.whole else 1,
            "NA_PLANE": self.plane,
            "NA_HELD": held,
            "NA_WIDE": wide,
            "NA_THREADS": self.threads,
            "NA_BFLOAT": int(self.has_bfloat),
        }


MATRIX = Core("matrix", lanes=32, rows=8, tokens=8, threads=256)  # Metal
MATRIX_M1 = Core("matrix", lanes=32, rows=8, tokens=8, threads=256, has_bfloat=False)  # and M2
MATRIX_16 = Core("matrix", lanes=32, rows=16, tokens=8, threads=128)
NAX = Core("nax", 32, rows=16, tokens=32, threads=128, beside=4, depth=16, on_trial=True)  # M5
HOPPER = Core(  # CUDA, the H100 and the H200
    "hopper", 128, rows=64, tokens=64, threads=256, depth=64, on_trial=True, plane=129, pace=2.0
)
TENSOR_32 = Core("tensor", lanes=32, rows=16, tokens=32, threads=256)  # CUDA
TENSOR_16 = Core("tensor", lanes=32, rows=16, tokens=16, threads=256)
TENSOR_8 = Core("tensor", lanes=32, rows=16, tokens=8, threads=256)
TENSORS = (TENSOR_32, TENSOR_16, TENSOR_8)
SCALAR_4 = Core("scalar", lanes=4, rows=4, tokens=2, threads=128)  # either
SCALAR_8 = Core("scalar", lanes=8, rows=4, tokens=4, threads=128)


@cache
def enumerators(enum: str) -> Mapping[str, int]:
    """The numbers of an enum of tile.h by their names: its text is the one place that has them.

    `na_param` is what the parameter block begins with, `na_axis_param` what each axis adds.
    """
    found = re.search(rf"enum {enum} {{(.*?)}};", source("tile.h"), re.DOTALL)
    if found is None:
        raise ValueError(f"[enumerators] 'enum' must be one of tile.h but got {enum!r}.")
    numbers: dict[str, int] = {}
    for item in found[1].split(","):
        name, _, given = item.partition("=")
        following = max(numbers.values(), default=-1) + 1
        numbers[name.strip()] = int(given) if given else following
    return numbers


@cache
def source(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def body(kernel: str, absent: Collection[str] = ()) -> str:
    """The body of a kernel, to which arrays that a problem has not are null pointers."""
    nulls = [_null(kernel, array) for array in sorted(absent)]
    return "".join(nulls) + source(f"{kernel}.metal")


def _null(kernel: str, array: str) -> str:
    """What stands for an array in the body; nothing if it has none of that name."""
    arrays = KERNELS[kernel]
    if array not in (*arrays.inputs, *arrays.outputs):
        return ""
    const = "const " if array in arrays.inputs else ""
    element = "int" if array in INT32 else "float" if array in FLOAT32 else "T"
    return f"{const}DEV {element}* {array} = nullptr;\n"


@cache
def header(dialect: str, core: Core, resident: int = 1) -> str:
    """All that precedes a body.

    Args:
        dialect: `"metal"` or `"cuda"`.
        core: Who multiplies.
        resident: Threadgroups that a processor is to hold at once, for CUDA. For Metal whether its
            compiler is told how many threads they have.
    """
    cuda = dialect == "cuda"
    defined = core.constants | ({"NA_RESIDENT": resident} if cuda else {})
    bounded = () if cuda or not resident else ("bounded.h",)
    names = (f"dialect_{dialect}.h", "fragment.h", *core.headers, *HEADERS, *bounded)
    return "\n".join([*(f"#define {k} {v}" for k, v in defined.items()), *map(source, names)])

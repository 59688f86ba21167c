"""Calls of the runtime put into LLVM IR, as text: accesses to check, arithmetic to count."""

from __future__ import annotations

import re
from collections import Counter

# ---- What clang's sanitizers let pass: a struct copied without the alignment of its type, and one
# assigned to the element past the end of an array.

_COPY = re.compile(
    r"call void @llvm\.memcpy\S*\(ptr align (?P<to_align>\d+) (?P<to>\S+), "
    r"ptr align (?P<from_align>\d+) (?P<from>\S+), "
)
_POINTER = re.compile(r"  (%\S+) = (?:(alloca)|getelementptr .*?ptr (%[^,\s]+))")
_SUBSCRIPT = re.compile(r"getelementptr [^\[%]*\[(\d+) x .*\], ptr [^,]+, i64 0, i64 (%?[^,\s]+)")
_PLACE = re.compile(r", !dbg !\d+")
_SMALLEST_COPY = 16  # smaller ones become loads and stores

_DECLARATIONS = """
declare void @__msl_aligned(ptr, i32)
declare void @__msl_bad_index(i64, i64) noreturn cold
define internal void @__msl_index(i64 %index, i64 %size) alwaysinline {
  %bad = icmp uge i64 %index, %size
  br i1 %bad, label %report, label %done
report:
  call void @__msl_bad_index(i64 %index, i64 %size)
  unreachable
done:
  ret void
}
"""


def check_accesses(ir: str) -> str:
    """Adds checks of array indices, and of the pointers of large aligned copies."""
    lines: list[str] = []
    bases: dict[str, str] = {}  # pointer -> what it points into
    for line in ir.splitlines():
        if line.startswith("define "):
            bases = {}
        place = _PLACE.search(line)
        debug = place[0] if place else ""
        if pointer := _POINTER.match(line):
            name, variable, base = pointer.groups()
            bases[name] = "own variable" if variable else bases.get(base, base)
        if subscript := _SUBSCRIPT.search(line):
            size, index = subscript.groups()
            if index.startswith("%") or int(index) >= int(size):
                lines.append(f"  call void @__msl_index(i64 {index}, i64 {size}){debug}")
        elif copy := _COPY.search(line):
            for end in ("from", "to"):
                align = int(copy[f"{end}_align"])
                if align >= _SMALLEST_COPY and bases.get(copy[end]) != "own variable":
                    lines.append(f"  call void @__msl_aligned(ptr {copy[end]}, i32 {align}){debug}")
        lines.append(line)
    return "\n".join(lines) + _DECLARATIONS


# ---- Arithmetic: a call that adds up its operations goes into every basic block. The blocks are
# those of optimised x86 code without vectorisation, so the counts are close to, not exactly, what a
# GPU's compiler would issue.

# Counts of rt/runtime.h, in the order of the arguments of __msl_operations.
OPERATIONS = (
    "fmas",
    "float_operations",
    "half_conversions",
    "special_operations",
    "int_operations",
    "int_divisions",
)

# What counts as which: an opcode, or the function that is called.
_RULES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("fmas", r"call .*@llvm\.(?:fma|fmuladd)\."),
        (
            "special_operations",
            r"f(?:div|rem)\b|call .*@(?:llvm\.)?(?:exp|log|sqrt|sin|cos|tan|pow)",
        ),
        ("half_conversions", r"fpext (?:<\d+ x )?half\b"),
        ("float_operations", r"f(?:add|sub|mul|neg|cmp|ptrunc|pext|ptosi|ptoui)\b|[su]itofp\b"),
        (
            "float_operations",
            r"call .*@llvm\.(?:max|min|fabs|copysign|floor|ceil|rint|trunc|round)",
        ),
        ("int_divisions", r"[su](?:div|rem)\b"),
        ("int_operations", r"(?:add|sub|mul|shl|lshr|ashr|and|or|xor|icmp|select)\b"),
        ("int_operations", r"call .*@llvm\.[su](?:max|min)"),
    )
)
_INSTRUCTION = re.compile(r"  (?:%\S+ = )?(?:tail |notail |musttail )?(.*)")
_TERMINATOR = re.compile(r"  (?:br|ret|switch|unreachable)\b")
_VECTOR = re.compile(r"<(\d+) x ")


def count_operations(ir: str) -> str:
    """Adds the counting calls to a module."""
    lines: list[str] = []
    block: Counter[str] = Counter()
    inside = False
    for line in ir.splitlines():
        if line.startswith("define "):
            inside = True
        elif line == "}":
            inside = False
        elif inside and _TERMINATOR.match(line):
            if block:
                counts = ", ".join(f"i32 {block[kind]}" for kind in OPERATIONS)
                lines.append(f"  call void @__msl_operations({counts})")
            block = Counter()
        elif inside:
            block.update(_operation(line))
        lines.append(line)
    arguments = ", ".join("i32" for _ in OPERATIONS)
    return "\n".join([*lines, f"declare void @__msl_operations({arguments})", ""])


def _operation(line: str) -> dict[str, int]:
    """What one instruction counts as: once per element of a vector."""
    found = _INSTRUCTION.match(line)
    kind = next((k for k, rule in _RULES if found and rule.match(found[1])), None)
    width = _VECTOR.search(line)
    return {kind: int(width[1]) if width else 1} if kind else {}

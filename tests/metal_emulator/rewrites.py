"""The few places where Metal's syntax differs from clang's C++ for OpenCL, rewritten as text.

Lines stay lines, so that clang's positions remain true; columns may shift.
"""

from __future__ import annotations

import functools
import re

_SCALARS = "float|half|bfloat|char|uchar|short|ushort|int|uint|long|ulong"
_VECTOR = rf"(?:{_SCALARS})[234]"

Edit = tuple[int, int, str]


@functools.lru_cache(maxsize=256)
def rewrite(source: str, threadgroup_variables: bool = True) -> str:
    """Rewrites a Metal source for clang.

    Args:
        source: A kernel's body or header.
        threadgroup_variables: Whether `threadgroup T x[N];` may stand here (in a kernel's body).
            Elsewhere it is left as it is: clang rejects it, as Apple's compiler does.
    """
    steps = [_remove_attributes, _unqualify_constructors, _convert_casts, _call_constructors]
    if threadgroup_variables:
        steps.insert(0, _allocate_threadgroup_variables)
    for find_edits in steps:
        source = _apply(source, find_edits(source, _mask(source)))
    return source


def expand_storage(source: str, header: str) -> str:
    """Replaces the header's macros for `alignas(N) threadgroup` in a body by their meaning."""
    storage = re.findall(r"^#define (\w+) (alignas\(\d+\) threadgroup)$", header, re.M)
    for name, meaning in storage:
        source = re.sub(rf"\b{name}\b", meaning, source)
    return source


def _apply(source: str, edits: list[Edit]) -> str:
    for start, end, text in sorted(edits, reverse=True):
        source = source[:start] + text + source[end:]
    return source


def _mask(source: str) -> str:
    """A copy of the same length with comments and strings blanked."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\""
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.S)


def _closing(text: str, start: int, brackets: str) -> int:
    """The position of the bracket that closes the one at `start`, or -1."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == brackets[0]:
            depth += 1
        elif text[i] == brackets[1]:
            depth -= 1
            if depth == 0:
                return i
        elif text[i] in ";{" and brackets == "<>":
            return -1
    return -1


def _split_top_level(text: str) -> list[str]:
    parts, depth = [""], 0
    for c in text:
        depth += (c in "[(<{") - (c in "])>}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _allocate_threadgroup_variables(source: str, masked: str) -> list[Edit]:
    """`threadgroup T x[N];` becomes a reference to storage that the runtime owns.

    clang allows such variables only in kernels that are no templates.
    """
    type_ = r"[\w:]+(?:\s*<[^;<>]*(?:<[^;<>]*>[^;<>]*)*>)?(?:::\w+)?"
    declarator = r"\w+\s*(?:\[[^;]*?\]\s*)*(?:=\s*\{[^;{}]*\}\s*)?"
    statement = re.compile(
        rf"(?:(?<=[;{{}}])|^)(\s*)(?:alignas\((?P<align>\d+)\)\s+)?threadgroup\s+(?!const\b)"
        rf"(?P<type>{type_})\s+(?P<all>(?:{declarator},?\s*)+)(?=;)",
        re.M,
    )
    edits: list[Edit] = []
    number = 0
    for found in statement.finditer(masked):
        variables = []
        for declared in _split_top_level(source[found.start("all") : found.end("all")]):
            name, extents = re.match(r"\s*(\w+)\s*([^=]*)", declared, re.S).groups()  # type: ignore[union-attr]
            number += 1
            kind = f"__type_of_{name}"
            alignment = found["align"] or f"alignof({kind})"
            variables.append(
                f"typedef {found['type']} {kind} {extents.strip()}; "
                f"threadgroup {kind}& {name} = *(threadgroup {kind}*)"
                f'__msl_threadgroup_variable({number}, sizeof({kind}), {alignment}, "{name}")'
            )
        edits.append((found.start(), found.end(), found[1] + "; ".join(variables)))
    return edits


def _remove_attributes(source: str, masked: str) -> list[Edit]:
    """Attributes of entry points say nothing to a type check, and clang misplaces some."""
    edits: list[Edit] = []
    for found in re.finditer(r"\btemplate\s*\[\[\s*host_name\([^)]*\)\s*\]\]", masked):
        edits.append((found.start(), found.end(), "template "))
    names = "kernel|user_annotation|max_total_threads_per_threadgroup"
    for found in re.finditer(rf"\[\[\s*(?:{names})\b[^\]]*\]\]", masked):
        edits.append((found.start(), found.end(), ""))
    for found in re.finditer(r"\[\[\s*function_constant\([^)]*\)\s*\]\](?=\s*;)", masked):
        edits.append((found.start(), found.end(), " = {}"))
    return edits


def _unqualify_constructors(source: str, masked: str) -> list[Edit]:
    """`S(..) thread {` becomes `S(..) {`: clang refuses the former for `return {..}`."""
    edits: list[Edit] = []
    for name in set(re.findall(r"\bstruct\s+(\w+)", masked)):
        for found in re.finditer(rf"(?<![\w~.]){name}\s*\(", masked):
            end = _closing(masked, found.end() - 1, "()")
            after = re.compile(r"\s*(thread)\s*(?:[:{]|=\s*default)").match(masked, end + 1)
            if end > 0 and after:
                edits.append((after.start(1), after.end(1), ""))
    return edits


def _vector_aliases(masked: str) -> str:
    """An alternation of the vector types' names: built in, and by using or typedef."""
    using = rf"\busing\s+(\w+)\s*=\s*(?:typename\s+)?(?:metal::)?(?:vec\s*<|{_VECTOR}\s*;)"
    typedef = rf"\btypedef\s+(?:metal::)?(?:vec\s*<[^;]*>|{_VECTOR})\s+(\w+)\s*;"
    names = sorted({*re.findall(using, masked), *re.findall(typedef, masked)})
    return "|".join([_VECTOR, *names])


def _convert_casts(source: str, masked: str) -> list[Edit]:
    """`static_cast<V>(x)` to a vector type becomes `metal::__convert<V>(x)`."""
    vectors = re.compile(rf"(?:metal::)?(?:{_vector_aliases(masked)}|vec\s*<.*>)")
    edits: list[Edit] = []
    for found in re.finditer(r"\bstatic_cast\s*<", masked):
        end = _closing(masked, found.end() - 1, "<>")
        if end > 0 and vectors.fullmatch(source[found.end() : end].strip()):
            edits.append((found.start(), found.end(), "metal::__convert<"))
    return edits


def _call_constructors(source: str, masked: str) -> list[Edit]:
    """`V(a, b, ..)` of a vector type becomes `metal::__construct<V>::make(a, b, ..)`."""
    edits: list[Edit] = []
    for found in re.finditer(rf"(?<![\w.:])(?:metal::)?({_vector_aliases(masked)})\s*\(", masked):
        if not _is_declaration(masked, found.start()):
            edits.append((found.start(), found.end(), f"metal::__construct<{found[1]}>::make("))
    for found in re.finditer(r"(?<![\w.:])(?:metal::)?vec\s*<", masked):
        end = _closing(masked, found.end() - 1, "<>")
        opening = re.compile(r"\s*\(").match(masked, end + 1)
        if end > 0 and opening and not _is_declaration(masked, found.start()):
            vector = source[found.start() : end + 1]
            edits.append((found.start(), opening.end(), f"metal::__construct<{vector}>::make("))
    return edits


def _is_declaration(masked: str, position: int) -> bool:
    """Whether what precedes a type's name makes it no constructor call."""
    before = r"\b(operator|const|device|thread|threadgroup|constant|inline|constexpr|void)\s*$"
    return bool(re.search(before, masked[max(0, position - 14) : position]))

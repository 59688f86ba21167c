"""The strict check: would Apple's compiler take this kernel?

clang's C++ for OpenCL has Metal's address spaces and most of its rules. The rest comes from two
sources: warnings that are errors in Metal, and rules over clang's syntax tree (as text).
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import build
from .frontend import Kernel

_WARNINGS = shlex.split(
    "-Wall -Wextra -Wconversion -Wno-sign-conversion -Wno-shorten-64-to-32 -Wno-sign-compare "
    "-Wno-implicit-int-conversion -Wno-unused-parameter -Wno-unused-variable"
)

# Conversions that clang only warns of, and Metal does not have.
_BFLOAT = r"'(?:bfloat|bfloat16_t|__bf16)"
_FORBIDDEN_CONVERSIONS = (
    re.compile(rf"implicit conversion loses floating-point precision: '.*' to {_BFLOAT}"),
    re.compile(rf"implicit conversion from '.*' to {_BFLOAT}"),
    re.compile(rf"implicit conversion.*{_BFLOAT}.*' to '(?:half|float16_t)"),
)


@dataclass(frozen=True)
class Finding:
    """Something the compiler says, and where: file and line."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a strict check. Warnings are those of the kernel's own text."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def check(kernel: Kernel, metal_version: int | None = None) -> Verdict:
    """Type-checks one instantiation of a kernel by Metal's rules.

    Args:
        kernel: The kernel with its arguments and template values.
        metal_version: As `__METAL_VERSION__`: 310 is Metal 3.1, 400 is Metal 4. None: what the
            kernel needs.
    """
    metal_version = metal_version or kernel.metal_version
    fp64_off = "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64"
    flags = build.with_prelude([*build.language_flags(metal_version), *_WARNINGS, fp64_off])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.clcpp"
        source.write_text(kernel.text(entry_point=False))
        plain = ["-ferror-limit", "0", "-fno-caret-diagnostics", "-ast-dump", str(source)]
        done = build.run_clang("-cc1", *flags, *plain, accept_errors=True)
    errors, warnings = _diagnostics(done.stderr)
    if done.returncode and not errors:
        raise build.CompileError(done.stderr)
    errors += _forbidden_syntax(done.stdout, metal_version)
    return Verdict(tuple(dict.fromkeys(errors)), tuple(dict.fromkeys(warnings)))


def _diagnostics(text: str) -> tuple[list[Finding], list[Finding]]:
    errors, warnings = [], []
    for line in text.splitlines():
        found = re.match(r"(\S+?):(\d+):\d+: (fatal error|error|warning): (.*)", line)
        if not found:
            continue
        finding = Finding(f"{Path(found[1]).name}:{found[2]}", found[4])
        if "error" in found[3]:
            errors.append(finding)
        elif any(rule.search(found[4]) for rule in _FORBIDDEN_CONVERSIONS):
            message = f"implicit conversion of bfloat is not allowed in Metal ({found[4]})"
            errors.append(Finding(finding.place, message))
        elif _is_own(found[1]):
            warnings.append(finding)
    return errors, warnings


def _is_own(file: str) -> bool:
    """Whether a position lies in the kernel's text: its names are set by #line, without folders."""
    return "/" not in file and file != "entry.metal"


@dataclass
class _Node:
    """One line of clang's -ast-dump."""

    depth: int
    kind: str
    address: str  # of the first declaration, where there are several
    place: str
    is_own: bool
    rest: str  # name, type and flags
    callee: str | None  # the function that an expression names


_LINE = re.compile(r"([ |`-]*)(\w+) (0x[0-9a-f]+)((?: (?:parent|prev) 0x[0-9a-f]+)*) ?(.*)")
_POSITION = re.compile(r"(?:(line):(\d+)|(col)|([^\s<>,:]+\.?[^\s<>,:]*):(\d+)):(\d+)")


def _nodes(dump: str) -> Iterator[_Node]:
    """Parses a dump; positions there are relative to the one before, so all must be read."""
    file, line = "", 0
    first: dict[str, str] = {}
    for text in dump.splitlines():
        found = _LINE.match(text)
        if not found:
            continue
        prefix, kind, address, earlier, rest = found.groups()
        if " prev " in earlier:
            previous = earlier.split(" prev ")[1].split()[0]
            first[address] = first.get(previous, previous)
            address = first[address]
        extent, after = _split_extent(rest)
        place = (file, line)
        own_position = _POSITION.match(after)
        for position in _POSITION.finditer(extent):
            file, line = _moved(position, file, line)
            if position.start() <= 1:
                place = (file, line)
        if own_position:
            file, line = _moved(own_position, file, line)
            place = (file, line)
        name = f"{place[0].rpartition('/')[2]}:{place[1]}"
        named = re.search(r"\b(?:Function|CXXMethod) (0x[0-9a-f]+)", after)
        callee = first.get(named[1], named[1]) if named else None
        yield _Node(len(prefix) // 2, kind, address, name, _is_own(place[0]), after, callee)


def _split_extent(rest: str) -> tuple[str, str]:
    """Splits `<begin, end> position name 'type'` after the extent, which may nest brackets."""
    if not rest.startswith("<"):
        return "", rest
    end = rest.index(">") + 1
    if rest.count("<", 0, end) == 1:  # nearly always
        return rest[:end], rest[end:].lstrip()
    depth = 0
    for i, c in enumerate(rest):
        depth += (c == "<") - (c == ">")
        if depth == 0:
            return rest[: i + 1], rest[i + 1 :].lstrip()
    return rest, ""


def _moved(position: re.Match[str], file: str, line: int) -> tuple[str, int]:
    if position[1]:
        return file, int(position[2])
    if position[3]:
        return file, line
    return position[4], int(position[5])


_DECLARATIONS = {"ParmVarDecl", "VarDecl", "FieldDecl", "TypedefDecl", "TypeAliasDecl"}
_CASTS = {"CStyleCastExpr", "CXXStaticCastExpr", "CXXReinterpretCastExpr", "CXXConstCastExpr"}
_FUNCTIONS = {"FunctionDecl", "CXXMethodDecl"}


def _forbidden_syntax(dump: str, metal_version: int) -> list[Finding]:
    """Applies the rules that need the syntax tree."""
    findings: list[Finding] = []
    calls: dict[str, set[str]] = {}
    names: dict[str, tuple[str, str]] = {}  # function -> its name and place
    parents: list[_Node] = []
    scopes: list[tuple[str | None, bool]] = []  # of a parent: its function, whether it is written
    for node in _nodes(dump):
        del parents[node.depth :], scopes[node.depth :]
        caller, written = scopes[-1] if scopes else (None, True)
        if node.kind in _FUNCTIONS:
            caller = node.address
            if node.is_own:
                names[caller] = (node.rest.split(" '")[0].split()[-1], node.place)
        written = written and " implicit " not in f" {node.rest}"
        parents.append(node)
        scopes.append((caller, written))
        if caller and node.callee:
            calls.setdefault(caller, set()).add(node.callee)
        if node.is_own and written:
            messages = (_address_space(node), _storage(node, parents), _kind(node, metal_version))
            findings += [Finding(node.place, m) for m in messages if m]
    for address, (name, place) in names.items():
        if address in _reachable(address, calls):
            findings.append(Finding(place, f"recursion of '{name}' is not supported in Metal"))
    return findings


def _types(node: _Node) -> list[str]:
    """The types quoted in a line, of the node itself: a declaration's or an expression's."""
    return re.findall(r"'([^']*)'", node.rest)[:2]


def _address_space(node: _Node) -> str | None:
    """A pointer or reference without an address space, which clang takes for `__generic`."""
    if node.kind in _DECLARATIONS | _CASTS:
        generic = next((t for t in _types(node) if "__generic" in t and "&&" not in t), None)
        if generic:
            return f"pointer or reference must have an explicit address space: '{generic}'"
    if node.kind in _FUNCTIONS and _types(node):
        result = _types(node)[0].split("(")[0]
        if "__generic" in result:
            return f"return type must have an explicit address space: '{result}'"
    return None


def _storage(node: _Node, parents: list[_Node]) -> str | None:
    """Variables that live longer than a thread must be constant."""
    if node.kind != "VarDecl" or any("__constant" in t for t in _types(node)):
        return None
    scope = next((p.kind for p in reversed(parents[:-1]) if p.kind != "DeclStmt"), "")
    if scope in ("TranslationUnitDecl", "NamespaceDecl"):
        return "a variable of program scope must reside in the constant address space"
    if re.search(r"' static\b", node.rest):
        return "a static variable must reside in the constant address space"
    return None


def _kind(node: _Node, metal_version: int) -> str | None:
    """Statements and expressions that Metal does not have."""
    if node.kind == "GotoStmt":
        return "goto is not supported in Metal"
    if node.kind == "LambdaExpr" and metal_version < 400:
        return "lambda expressions need Metal 4"
    return None


def _reachable(start: str, calls: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    pending = list(calls.get(start, ()))
    while pending:
        callee = pending.pop()
        if callee not in seen:
            seen.add(callee)
            pending += calls.get(callee, ())
    return seen

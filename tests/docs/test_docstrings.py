"""One dialect of docstrings: Google's sections in Markdown, as mkdocstrings reads them."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "metal", "natten_zoo", "ops", "scripts", "tests")
SECTIONS = {"Args", "Attributes", "Examples", "Raises", "Returns", "Shape", "Yields"}
# What reStructuredText and Sphinx have, and this project has not.
FOREIGN = {
    "a role, such as :func:`x`": r":[a-z:]+:`",
    "a directive, such as .. math::": r"^\s*\.\. [a-z-]+::",
    "a table of equal signs": r"^\s*={4,}",
    "a literal block": r"::\s*$",
    "a parameter, such as :param x:": r"^\s*:(?:param|returns?|raises|type|rtype)\b",
    "a link, such as `x`_": r"`_(?![\w`])",
    "code in two backticks": r"(?<!`)``(?!`)[^`]+``(?!`)",
}


def docstrings(source: str):
    """The line of every docstring, and its text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def faults(text: str):
    """What a docstring has of other dialects."""
    yield from (what for what, pattern in FOREIGN.items() if re.search(pattern, text, re.M))
    for name in re.findall(r"^([A-Z]\w+):\n    ?(?=\S| )", text, re.M):
        if name not in SECTIONS:
            yield f"a section '{name}:'"
    before, doctest, _ = text.partition(">>> ")
    if doctest and not re.search(r"^Examples:$", before, re.M):
        yield "a doctest outside of Examples"


def test_all_docstrings_are_of_one_dialect():
    command = [
        "git",
        "ls-files",
        "-co",
        "--exclude-standard",
        "--",
        *(f"{n}/*.py" for n in FOLDERS),
    ]
    paths = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    count, found = 0, []
    for path in paths.split():
        if (ROOT / path).exists():
            for line, text in docstrings((ROOT / path).read_text(encoding="utf-8")):
                count += 1
                found += [f"{path}:{line}: {fault}" for fault in faults(text)]
    assert count > 1000
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "See :func:`na2d`.",
        "Sum.\n\n.. math:: x",
        "A.\n\n====  ====\na     b\n====  ====",
        "As follows::\n\n    x",
        "A.\n\n:param x: y",
        "`one <two>`_",
        "A.\n\nExample:\n    >>> 1\n    1",
        "A.\n\nNote:\n    Text.",
        "A.\n\n>>> 1\n1",
        "Of shape ``[B]``.",
    ],
)
def test_another_dialect_is_found(text):
    assert list(faults(text))


def test_ours_is_not():
    text = (
        "Sum of $x$, see [`na2d`][].\n\nArgs:\n    x: One of `a::b`.\n\nReturns:\n    `[B]`.\n\n"
        "Examples:\n    >>> 1\n    1"
    )
    assert not list(faults(text))

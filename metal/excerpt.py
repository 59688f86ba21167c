"""What MLX is given of a kernel's text: what the kernel needs, and no comments.

MLX looks a kernel up by its whole text each time that it is launched, which takes a fifth of a
microsecond a kilobyte: all the headers cost as much as twice the rest of a launch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

NAME = re.compile(r"\b[A-Za-z_]\w*\b")
COMMENT = re.compile(r"[ \t]*//[^\n]*|/\*.*?\*/", re.S)
TEMPLATE = re.compile(r"(?:template <[^{;]*?>\s(?=NA_FN|METAL_FUNC|struct))?")
PLANES = re.compile(r"#if NA_PLANE > 0\n(.*?)(?:#else\n(.*?))?#endif\n", re.S)
DECLARED = (  # the name that an item declares; of an enum all
    re.compile(r"#define (NA_\w+|na_\w+)"),
    re.compile(r"struct (?:alignas\([^{]*\) )?(\w+)"),
    re.compile(r"typedef [^;]*?(\w+);"),
    re.compile(r"constexpr [\w ]*?(\w+) ="),
    re.compile(r"(?:NA_FN|METAL_FUNC) [^(]*?(\w+)\("),
)


class Item(NamedTuple):
    """A declaration or a line for the preprocessor.

    Attributes:
        text: As it is written.
        declares: Names by which others may need it; none if it is always wanted.
        mentions: All names in it.
    """

    text: str
    declares: frozenset[str]
    mentions: frozenset[str]


def excerpt(header: str, body: str) -> tuple[str, str]:
    r"""Of a header what a body needs, and the body, both without comments and indentation.

    Examples:
        >>> header = "struct a { int x; };  // one\nNA_FN int f(a y) { return 1; }\nstruct b { };"
        >>> excerpt(header, "  f(z);  // two")
        ('struct a { int x; };\nNA_FN int f(a y) { return 1; }', 'f(z);')
    """
    items, short = _items(header), _bare(body)
    there = {name for item in items for name in item.declares}
    wanted = set(NAME.findall(short))
    for item in items:
        wanted |= item.mentions if not item.declares else set()
    while True:
        needed = [item for item in items if not item.declares or item.declares & wanted]
        more = {name for item in needed for name in item.mentions & there} - wanted
        if not more:
            return "\n".join(item.text for item in needed), short
        wanted |= more


def _bare(text: str) -> str:
    lines = (" ".join(line.split()) for line in COMMENT.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)


@cache
def _items(header: str) -> list[Item]:
    bare = _bare(header)
    branch = 2 if re.search(r"^#define NA_PLANE 0$", bare, re.M) else 1
    return [_item(text) for text in _split(PLANES.sub(lambda m: m[branch] or "", bare))]


def _split(text: str) -> Iterator[str]:
    """Declarations, which end with a line outside of all brackets, and lines that begin with #."""
    lines: list[str] = []
    depth = 0
    for line in text.splitlines():
        lines.append(line)
        if lines[0].startswith("#"):
            ends = not line.endswith("\\")
        else:
            depth += sum(line.count(c) for c in "({[") - sum(line.count(c) for c in ")}]")
            ends = depth == 0 and line.endswith((";", "}"))
        if ends:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _item(text: str) -> Item:
    bare, mentions = TEMPLATE.sub("", text, count=1), frozenset(NAME.findall(text))
    if bare.startswith("enum"):
        return Item(text, mentions, mentions)
    found = next(filter(None, (pattern.match(bare) for pattern in DECLARED)), None)
    return Item(text, frozenset(found.groups() if found else ()), mentions)

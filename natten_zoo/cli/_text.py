"""What verbs print: tables, bars, and what a classifier says of a file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..tasks import Guess


def typed(message: Exception | str, options: Mapping[str, str] | None = None) -> str:
    """A message of the library in the words of the command line.

    Args:
        message: It may begin with the function that it comes from, and has names in quotes.
        options: What is typed for a name; others stay.

    Examples:
        >>> typed("[read_image] photo.jpg: no such file.")
        'photo.jpg: no such file.'
        >>> typed("[Recipe] 'batch_size' must be at least 1.", {"batch_size": "--batch-size"})
        '--batch-size must be at least 1.'
    """
    if isinstance(message, OSError) and message.strerror and message.filename is not None:
        return f"{message.filename}: {message.strerror.lower()}"
    text = re.sub(r"^(\[[\w .]+\] )+", "", str(message)).replace(
        "list_models()", "`natten-zoo list`"
    )
    known = options or {}
    # Not in a list, where it is a class that is called like an option.
    return re.sub(r"(?<!, )'(\w+)'(?![,;])", lambda name: known.get(name[1], name[0]), text)


def options_of(parser: argparse.ArgumentParser, verb: str) -> dict[str, str]:
    """The long options of a verb by what the library calls them."""
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = verbs.choices[verb]._actions if verb in verbs.choices else []
    longest = {a.dest: max(a.option_strings, key=len) for a in actions if a.option_strings}
    return {name: option.replace("--no-", "--") for name, option in longest.items()}


def progress(total: int, batch_size: int, unit: str = "image") -> tqdm:
    """A progress bar on standard error; none for a single batch or when that is no terminal."""
    from tqdm import tqdm

    hidden = True if total <= batch_size else None  # None: only on a terminal
    return tqdm(total=total, unit=unit, file=sys.stderr, disable=hidden, leave=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Columns of text; `align` has `<` or `>` for each of them.

    Examples:
        >>> print(table(["name", "n"], [["a", "1"], ["bcdef", "23"]], "<>"))
        name    n
        a       1
        bcdef  23
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = zip(row, align, widths, strict=True)
        lines.append("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())
    return "\n".join(lines)


def as_plain(guesses: Iterable[Guess]) -> list[dict[str, Any]]:
    """Classes as plain data, ready for JSON."""
    return [
        {"class": g.label, "index": g.index, "probability": round(g.probability, 6)}
        for g in guesses
    ]


def print_result(
    result: Mapping[str, Any], as_json: bool, write: Callable[..., object] = print
) -> None:
    """Prints the classes of a file, or on standard error why it has none.

    Args:
        result: `file`, and `classes` as `as_plain` makes them or else `error`.
        as_json: As one line of JSON, an error too.
        write: What prints a text, on standard output or `file`; that of a progress bar makes room
            for it.
    """
    if "error" in result:
        result = {**result, "error": typed(result["error"])}
    if as_json:
        write(json.dumps(result, ensure_ascii=False))
    elif "error" in result:
        write(result["error"], file=sys.stderr)
    else:
        lines = [f"{entry['probability']:8.1%}  {entry['class']}" for entry in result["classes"]]
        write("\n".join([result["file"], *lines]))

"""Tables of what was measured, which grow by a line per measurement: `results/*.csv`."""

from __future__ import annotations

import argparse
import csv
import io
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import hold, write_whole
from ..version import __version__

if TYPE_CHECKING:
    from ..models import Model

ABOUT = ("device", "versions", "command")
# Of models. Other measurements have columns of their own, and these three at the end.
COLUMNS = (
    *("model", "data", "size_mib", "metric", "accuracy", "images", "images_per_second"),
    *ABOUT,
)


def append(path: Path, columns: Sequence[str] = COLUMNS, **values: Any) -> None:
    """Adds a line to a table, and makes the table if there is none.

    Args:
        path: The table, `*.csv`.
        columns: The table's, of which the last three tell what was measured on, and how.
        values: By column, all but these three; none where nothing was measured.

    Raises:
        ValueError: A value has no column, or the file is another table.
    """
    import mlx.core as mx

    if unknown := sorted(values.keys() - set(columns)):
        raise ValueError(f"{path} has no columns {', '.join(unknown)}.")
    info = mx.device_info()
    running = mx.__version__  # type: ignore[attr-defined]
    about = {
        "device": info.get("device_name") or f"{mx.default_device()}, {platform.machine()}",
        "versions": f"natten_zoo {__version__}, mlx {running}, Python {platform.python_version()}",
        "command": shlex.join(["natten-zoo", *sys.argv[1:]]),
    }
    if not sys.argv[0].endswith(("natten-zoo", "__main__.py")):
        about["command"] = shlex.join(["python", *sys.argv])
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f".{path.name}.lock"), str(path), wait=True):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        buffer = io.StringIO(newline="")
        table = csv.DictWriter(buffer, columns, lineterminator="\n")
        if not text:
            table.writeheader()
        elif tuple(next(csv.reader([text.partition("\n")[0]]))) != tuple(columns):
            raise ValueError(f"{path} must have the columns {', '.join(columns)}.")
        table.writerow({**values, **about})
        content = (text + buffer.getvalue()).encode()
        write_whole(path, lambda file: file.write(content))


def append_measured(
    args: argparse.Namespace,
    model: Model,
    name: str,
    metric: str,
    percent: float,
    images: int,
    seconds: float,
    once: bool = False,
) -> None:
    """Adds what a verb measured of a model on `args.data` to the table `args.csv`, if any.

    Args:
        args: The verb's.
        model: Whose weights are counted.
        name: What the table calls it.
        metric: What `percent` is.
        percent: The figure.
        images: Of how many images it is.
        seconds: That they took.
        once: Nothing is added if the table says the same already, but for the speed.
    """
    from ..pretrained.quantize import size

    if not args.csv:
        return
    known = {
        "model": name,
        "data": args.data,
        "size_mib": f"{size(model) / 2**20:.2f}",
        "metric": metric,
        "accuracy": f"{percent:.2f}",
        "images": str(images),
    }
    said = read(args.csv) if once and args.csv.exists() else []
    if not any(known.items() <= row.items() for row in said):
        append(args.csv, **known, images_per_second=f"{images / seconds:.2f}")


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a table, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(path: Path, columns: tuple[str, ...]) -> str:
    """Some columns of a table as the documents show them.

    Raises:
        ValueError: The file is another table.
    """
    rows = read(path)
    if rows and set(columns) - rows[0].keys():
        raise ValueError(f"{path} must have the columns {', '.join(columns)}.")
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[f"`{row[c]}`" if c == "command" else row[c] for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

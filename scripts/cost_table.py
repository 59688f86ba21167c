"""Writes what scripts/kernel_cost.py prints into the table of docs/kernels.md, row by row.

    python scripts/kernel_cost.py | python scripts/cost_table.py
    python scripts/kernel_cost.py --core nax | python scripts/cost_table.py --nax

Rows that were not printed stay, new ones come last. With `--nax` only that column is written.
Where kernel_cost.py ran natten-mlx, so is its.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
COLUMNS = ("case", "", "lines", "must", "local", "mma", "ops", "copies", "cycles M1 (share)",
           "M4 (share)", "M5", "M5 with `nax`", "gain", "natten-mlx, M1", "times ours")  # fmt: skip
HEADING = f"| {' | '.join(COLUMNS)} |".replace("|  |", "| |")
COUNTS = ("lines", "must", "local", "mma", "waste", "ops", "copies")
CHIPS = ("M1", "M2", "M3", "M4", "M5")
PRINTED = re.compile(
    r"(\d-D .*?) +(ours|copied|natten-mlx) +(forward|backward) +"
    + r" +".join(rf"(?P<{name}>[\d.]+)" for name in COUNTS)
    + " +"
    + r" +".join(rf"(?P<{chip}>\d+) +(?P<{chip}_share>\d+%)" for chip in CHIPS)
)


def rows_of(page: str) -> dict[tuple[str, str], dict[str, str]]:
    """Of the printed table, by case and direction."""
    rows = {}
    for line in page[page.index(HEADING) :].splitlines()[2:]:
        if not line.startswith("| "):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        rows[cells[0], cells[1]] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def update(rows: dict[tuple[str, str], dict[str, str]], printed: Iterable[str], nax: bool) -> None:
    """Fills in what lines of kernel_cost.py say."""
    for found in filter(None, map(PRINTED.match, printed)):
        case, who, direction = found[1], found[2], found[3]
        if who == "copied":
            case = case.replace("packed", "copied")
        row = rows.setdefault((case, direction), dict.fromkeys(COLUMNS, ""))
        row |= {"case": case, "": direction}
        if who == "natten-mlx":
            row["natten-mlx, M1"] = found["M1"]
        elif nax:
            row["M5 with `nax`"] = found["M5"]
        else:
            row |= {name: found[name] for name in COUNTS if name in COLUMNS}
            row["cycles M1 (share)"] = f"{found['M1']} ({found['M1_share']})"
            row["M4 (share)"] = f"{found['M4']} ({found['M4_share']})"
            row["M5"] = found["M5"]
    for row in rows.values():
        row["gain"] = ratio(row["M5"], row["M5 with `nax`"])
        row["times ours"] = ratio(row["natten-mlx, M1"], row["cycles M1 (share)"].split(" ")[0])


def ratio(a: str, b: str) -> str:
    """Of two cells; nothing where one is empty."""
    return f"{float(a) / float(b):.1f}" if a and b else ""


def written(page: str, rows: dict[tuple[str, str], dict[str, str]]) -> str:
    """The page with these rows in place of its own."""
    start = page.index(HEADING)
    end = re.compile(r"^(?!\|)", re.M).search(page, start)
    lines = [HEADING, "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in rows.values()]
    return page[:start] + "\n".join(lines) + "\n" + page[end.start() :]


def main() -> None:
    """Rewrites the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    parser.add_argument("--nax", action="store_true", help="the lines are of --core nax")
    args = parser.parse_args()
    page = args.page.read_text("utf-8")
    rows = rows_of(page)
    update(rows, sys.stdin, args.nax)
    args.page.write_text(written(page, rows), "utf-8")


if __name__ == "__main__":
    main()

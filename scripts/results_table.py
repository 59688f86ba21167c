"""Prints a table of measurements as Markdown, for the documents.

natten-zoo evaluate fashion-mnist --csv results/fashion.csv
python scripts/results_table.py results/fashion.csv model accuracy images_per_second command

Where a table has several lines for one thing, such as one per contestant, --rows says which column
tells the things apart and --of which tells the lines; a column is then HEADER=NAME:FIELD/FIELD, or
HEADER=NAME,NAME over NAME:FIELD/FIELD, how often the last goes into the least of the others:

python scripts/results_table.py results/operators.csv --rows case --of contestant
  'ms=nanobind:forward_ms/both_ms' 'times gather=gather over nanobind:forward_ms/both_ms'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from natten_zoo.cli._results import COLUMNS, markdown, read

Lines = dict[str, dict[str, str]]  # of one thing, by name


def pivot(path: Path, rows: str, of: str, columns: list[str]) -> str:
    """A line for each thing in a table of several lines for each."""
    things: dict[str, Lines] = {}
    for line in read(path):
        things.setdefault(line[rows], {})[line[of]] = line
    wanted = [column.split("=", 1) for column in columns]
    table = [[rows, *(header for header, _ in wanted)], ["---"] * (len(wanted) + 1)]
    table += [
        [thing, *(cell(lines, what) for _, what in wanted)] for thing, lines in things.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def cell(lines: Lines, what: str) -> str:
    """What `NAME:FIELD/FIELD` or `NAME,NAME over NAME:FIELD/FIELD` is of one thing.

    Fields that a name lacks are left out: not everybody takes part in all of it.
    """
    names, _, fields = what.partition(":")
    others, over, name = names.rpartition(" over ")
    shown = []
    for field in fields.split("/"):
        own = lines.get(name, {}).get(field)
        of_others = [
            float(lines[n][field]) for n in others.split(",") if lines.get(n, {}).get(field)
        ]
        if own and over and of_others:
            times = min(of_others) / float(own)
            shown.append(f"{times:.1f}" if times < 10 else f"{times:.0f}")
        elif own and not over:
            shown.append(own)
    return " / ".join(shown)


def main() -> None:
    """Prints the columns that were asked for, in their order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="*.csv")
    parser.add_argument("columns", nargs="*", metavar="COLUMN", help=f"of {', '.join(COLUMNS)}")
    parser.add_argument("--rows", metavar="COLUMN", help="print a line for each of these")
    parser.add_argument("--of", metavar="COLUMN", help="which tells its lines in the table apart")
    args = parser.parse_intermixed_args()
    if bool(args.rows) != bool(args.of):
        parser.error("--rows and --of go together")
    if args.rows:
        print(pivot(args.table, args.rows, args.of, args.columns))
    else:
        print(markdown(args.table, tuple(args.columns) or COLUMNS))


if __name__ == "__main__":
    main()

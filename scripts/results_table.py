"""Prints a table of measurements as Markdown, for the documents.

natten-zoo evaluate fashion-mnist --csv results/fashion.csv
python scripts/results_table.py results/fashion.csv model accuracy images_per_second command
"""

from __future__ import annotations

import argparse
from pathlib import Path

from natten_zoo.cli._results import COLUMNS, markdown


def main() -> None:
    """Prints the columns that were asked for, in their order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="*.csv")
    parser.add_argument("columns", nargs="*", metavar="COLUMN", help=f"of {', '.join(COLUMNS)}")
    args = parser.parse_args()
    print(markdown(args.table, tuple(args.columns) or COLUMNS))


if __name__ == "__main__":
    main()

"""List the models: size, cost, accuracy, licence and where the weights come from.

PATTERN selects by name with * and ?, for example 'dinat*' or '*_384*'. Accuracies are those
their authors published, for ImageNet-1k unless the table says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from ._common import table

if TYPE_CHECKING:
    from ..pretrained.record import Record

_HEADER = ["name", "params", "GMACs", "input", "top-1", "classes", "licence", "weights"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="default: all")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    from ..pretrained.registry import get_record, list_models

    names = list_models(args.pattern)
    if not names:
        get_record(args.pattern)  # raises, naming the nearest
    records = [get_record(name) for name in names]
    if args.json:
        print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
    else:
        print(table(_HEADER, [_row(record) for record in records], "<>>>><<<"))
    return 0


def _row(record: Record) -> list[str]:
    return [
        record.name,
        f"{record.params / 1e6:.2f} M" if record.params else "",
        f"{record.gmacs:.2f}" if record.gmacs else "",
        str(record.input_size),
        f"{record.top1:.1f} %" if record.top1 else "",
        str(record.classes),
        record.license,
        "in the package" if record.file else record.hub or _host(record.url),
    ]


def _host(url: str | None) -> str:
    return urlparse(url).netloc if url else "none published"

"""List the models: size, cost, accuracy, licence and where the weights come from.

PATTERN selects by name with * and ?, for example 'dinat*' or '*_384*'. Figures are those that the
authors published for the data set in the next column: top-1 accuracy of classifiers, mean
intersection over union (mIoU, one scale) of segmentation models.
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

_HEADER = ["name", "params", "GMACs", "input", "published", "classes", "licence", "weights"]


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
        str(record.input_size or ""),
        _published(record),
        record.classes if isinstance(record.classes, str) else f"{record.num_classes} of its own",
        record.license,
        "in the package" if record.file else record.hub or _host(record.url),
    ]


def _published(record: Record) -> str:
    if record.miou:
        return f"{record.miou:.1f} % mIoU"
    return f"{record.top1:.1f} % top-1" if record.top1 else ""


def _host(url: str | None) -> str:
    return urlparse(url).netloc if url else "none published"

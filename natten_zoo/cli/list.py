"""List the models: task, size, cost, accuracy, license and where the weights come from.

PATTERN selects by name with * and ?, for example 'dinat*' or '*_384*'. Columns:

  params     parameters
  GMACs      billions of multiply-adds for one input of the usual size (a minute of music)
  published  the authors' figure: top-1 accuracy of classifiers, on ImageNet-1k where not said
             otherwise by the name; mean intersection over union of segmentation models, ADE20K at
             one scale; of OneFormer and Mask2Former panoptic quality, else average precision, else
             mean intersection over union at several scales, on the data of their name. Reproduced
             here: only those of models in the package
  parity     the weights with which this project's tests compare the model with a reference, the
             authors' code where there is any: trained or generated ones
  weights    who serves them

--json tells all that is known, such as input size, preprocessing, addresses and papers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from ._text import table

if TYPE_CHECKING:
    from ..configs.record import Record

_HEADER = ["name", "task", "params", "GMACs", "published", "parity", "license", "weights"]
_HUB = "huggingface.co"
# Names as long as this leave room for the other columns.
_WIDEST = 21


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="default: all")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    from ..models import get_record, list_models
    from ..tasks import task_of

    names = list_models(args.pattern)
    if not names:
        get_record(args.pattern)  # raises, naming the nearest
    records = [get_record(name) for name in names]
    if args.json:
        facts = [{**dataclasses.asdict(r), "task": task_of(r).name} for r in records]
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines([_row(record) for record in records])))
    return 0


def _lines(rows: list[list[str]]) -> list[str]:
    """The table; a name that would make it too wide for a terminal has a line of its own."""
    names = [row[0] for row in rows]
    cells = [
        [name if len(name) <= _WIDEST else "", *row[1:]]
        for name, row in zip(names, rows, strict=True)
    ]
    header, *lines = table(_HEADER, cells, "<<>>><<<").splitlines()
    result = [header]
    for name, line in zip(names, lines, strict=True):
        result += [line] if len(name) <= _WIDEST else [name, line]
    return result


def _row(record: Record) -> list[str]:
    from ..tasks import task_of

    return [
        record.name,
        task_of(record).short,
        f"{record.params / 1e6:.2f} M" if record.params else "",
        f"{record.gmacs:.{2 if record.gmacs < 1000 else 0}f}" if record.gmacs else "",
        _published(record),
        record.parity or "",
        record.license,
        _place(record),
    ]


def _published(record: Record) -> str:
    figures = {
        "top-1": record.top1,
        "PQ": record.pq,
        "AP": record.ap,
        "mIoU": record.miou or record.miou_multi_scale,
    }
    known = (f"{value:.1f} % {name}" for name, value in figures.items() if value)
    return next(known, "")


def _place(record: Record) -> str:
    if record.file:
        return "package"
    host = _HUB if record.hub else urlparse(record.url or "").netloc
    return {_HUB: "Hugging Face", "": "none"}.get(host, host)

"""Make a model smaller: its linear layers in 8, 6 or 4 bits.

Convolutions (the tokenizer and the downsamplers), norms and biases stay as they are. OUT is a
model like any other: every verb and `from_pretrained` take it. With --data the accuracy before
and after is measured on the same images.

  natten-zoo quantize nat_mini nat_mini-8bit --bits 8 --data imagenet/val --limit 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import add_order_argument, positive

if TYPE_CHECKING:
    from ..data import Preprocess
    from ..models import Classifier


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("source", metavar="MODEL", help="a name, a file or a folder")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--bits", type=int, choices=(4, 6, 8), default=8, help="default: 8")
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="weights that share a scale (default: 64)",
    )
    parser.add_argument("--data", metavar="DATA", help="measure on a folder, or `fashion-mnist`")
    add_order_argument(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only N of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace a model at OUT")


def run(args: argparse.Namespace) -> int:
    """Quantizes, measures if asked to, saves, and prints the figures."""
    from ..pretrained.folder import check_target
    from ..pretrained.quantize import quantize, size
    from ..pretrained.save import save_pretrained
    from ..tasks.classification import open_classifier

    check_target(args.target, args.overwrite)
    model, preprocess = open_classifier(args.source)
    before = size(model), accuracy(args, model, preprocess)
    count, stay = quantize(model, args.bits, args.group_size)
    after = size(model), accuracy(args, model, preprocess)
    save_pretrained(model, args.target, overwrite=args.overwrite)
    print(f"{count} linear layers in {args.bits} bits; convolutions, norms and biases stay")
    if stay:
        print(f"stay too, {args.group_size} does not divide their inputs: {', '.join(stay)}")
    for name, (weight, top1) in (("before", before), ("after", after)):
        text = "" if top1 is None else f", top-1 {top1:.2f} %"
        print(f"{name}: {weight / 2**20:.2f} MiB{text}")
    print(f"model: {args.target}")
    return 0


def accuracy(args: argparse.Namespace, model: Classifier, preprocess: Preprocess) -> float | None:
    """Top-1 accuracy on the data that was named, if any, in percent."""
    from ..tasks.classification import output_names
    from ..tasks.evaluation import evaluate
    from .evaluate import open_data

    if args.data is None:
        return None
    names = output_names(model)
    sources, labels = open_data(args.data, model, args.limit, args.by_order)
    return evaluate(model, sources, labels, preprocess, names).top1

"""Make a model smaller: its linear layers in 8, 6 or 4 bits, or in floats of 8 or 4.

Convolutions (the tokenizer and the downsamplers), norms and biases stay as they are. OUT is a
model like any other: every verb and `from_pretrained` take it. With --data the accuracy before
and after is measured on the same images. With --mixed some layers get 8 bits and all others 4:
those that change the answers most when they alone get 4, seen on images of --data without labels.

  natten-zoo quantize nat_mini nat_mini-8bit --bits 8 --data imagenet/val --limit 2000
  natten-zoo quantize nat_mini nat_mini-mixed --mixed 0.25 --data imagenet/val --limit 2000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import add_csv_argument, add_order_argument, positive, share

if TYPE_CHECKING:
    from ..data import Preprocess
    from ..models import Classifier
    from ..pretrained.quantize import Quantization


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("source", metavar="MODEL", help="a name, a file or a folder")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--mode",
        choices=("affine", "mxfp4", "nvfp4", "mxfp8"),
        default="affine",
        help="integers with a scale and an offset, or floats of one format (default: affine)",
    )
    parser.add_argument("--bits", type=int, choices=(4, 6, 8), help="of affine (default: 8)")
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        help="weights that share a scale, of affine (default: 64)",
    )
    parser.add_argument(
        "--mixed",
        type=share,
        metavar="SHARE",
        help="of the weights that get 8 bits while the others get 4, in 0..1 (mxfp8 beside mxfp4 "
        "and nvfp4)",
    )
    parser.add_argument(
        "--calibrate",
        type=positive,
        default=256,
        metavar="N",
        help="images that --mixed looks at (default: 256)",
    )
    parser.add_argument("--data", metavar="DATA", help="measure on a folder, or `fashion-mnist`")
    add_order_argument(parser)
    add_csv_argument(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only N of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace a model at OUT")


def run(args: argparse.Namespace) -> int:
    """Quantizes, measures if asked to, saves, and prints the figures."""
    from ..pretrained.folder import check_target
    from ..pretrained.quantize import Quantization, quantize
    from ..pretrained.save import save_pretrained
    from ..tasks.classification import open_classifier

    if args.mixed is not None and args.data is None:
        raise ValueError("--mixed looks at images: name some by --data.")
    if args.mixed is not None and (args.bits or args.mode == "mxfp8"):
        raise ValueError("--mixed chooses the bits: leave out --bits, and --mode mxfp8.")
    check_target(args.target, args.overwrite)
    model, preprocess = open_classifier(args.source)
    before = measured(args, model, preprocess, args.source, once=True)
    layers = more_bits(args, model, preprocess) if args.mixed is not None else {}
    bits = 4 if args.mixed is not None and args.mode == "affine" else args.bits
    how = Quantization.of(args.mode, bits, args.group_size)
    count, stay = quantize(model, how.bits, how.group_size, how.mode, layers=layers)
    mixed = f", {args.mixed:.0%} of the weights in 8 bits" if layers else ""
    after = measured(args, model, preprocess, f"{args.source}, {how}{mixed}")
    save_pretrained(model, args.target, overwrite=args.overwrite)
    print(f"{count - len(layers)} linear layers in {how}; convolutions, norms and biases stay")
    if layers:
        print(f"{len(layers)} in {next(iter(layers.values()))}: {', '.join(layers)}")
    if stay:
        print(f"stay too, {how.group_size} does not divide their inputs: {', '.join(stay)}")
    print(f"before: {before}")
    print(f"after: {after}")
    print(f"model: {args.target}")
    return 0


def measured(
    args: argparse.Namespace,
    model: Classifier,
    preprocess: Preprocess,
    name: str,
    once: bool = False,
) -> str:
    """A model's size and, if data was named, accuracy, as text and as a line of a table."""
    from ..pretrained.quantize import size
    from ._results import append_measured

    text = f"{size(model) / 2**20:.2f} MiB"
    if args.data is None:
        return text
    start = time.perf_counter()
    top1, count = accuracy(args, model, preprocess)
    seconds = time.perf_counter() - start
    append_measured(args, model, name, "top-1", top1, count, seconds, once)
    return f"{text}, top-1 {top1:.2f} %"


def accuracy(
    args: argparse.Namespace, model: Classifier, preprocess: Preprocess
) -> tuple[float, int]:
    """Top-1 accuracy on the data that was named, in percent, and of how many images."""
    from ..tasks.classification import output_names
    from ..tasks.evaluation import evaluate
    from .evaluate import open_data

    sources, labels = open_data(args.data, model, args.limit, args.by_order)
    result = evaluate(model, sources, labels, preprocess, output_names(model))
    return result.top1, len(result.labels)


def more_bits(
    args: argparse.Namespace, model: Classifier, preprocess: Preprocess
) -> dict[str, Quantization]:
    """The layers that get 8 bits."""
    from ..data.image_files import read_batches
    from ..pretrained.mixed_bits import losses, worst
    from ..pretrained.quantize import Quantization
    from .evaluate import open_data

    few = Quantization.of(args.mode, 4, args.group_size)
    many = Quantization.of("affine", 8, args.group_size)
    if args.mode != "affine":
        many = Quantization.of("mxfp8")
    sources, _ = open_data(args.data, model, args.calibrate, args.by_order)
    batches = [batch.images for batch in read_batches(sources, preprocess, 32) if batch.indices]
    measured = losses(model, batches, few)
    return dict.fromkeys(worst(model, measured, args.mixed), many)

"""Say what every pixel of an image shows: an overlay with a legend, the mask, and JSON.

  natten-zoo segment street.jpg -o street.png --model upernet_dinat_tiny

writes street.png, the image tinted by class with a legend; street_mask.png, whose pixels are class
indices and which viewers show in the classes' colors; and street.json with each class's index,
color, pixels and share of the image. Images may be of any size and shape.

The models know the 150 classes of ADE20K: things and surfaces in homes, streets and nature. Their
published accuracies are for whole images at one scale; --scales and --flip look at several sizes
and at mirror images as well, which takes that much longer and is a little better.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import write_whole
from ._arguments import add_variant_argument, keep_input, png, share


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "-o",
        "--out",
        type=png,
        default=Path("segment.png"),
        metavar="PNG",
        help="the overlay (default: %(default)s); the other files' names are made from it",
    )
    parser.add_argument(
        "-m",
        "--model",
        default="upernet_nat_mini",
        metavar="NAME|PATH",
        help="a segmentation model of `natten-zoo list 'upernet*'`, or a local checkpoint file or "
        "folder (default: %(default)s, which is downloaded)",
    )
    add_variant_argument(parser)
    parser.add_argument(
        "--sliding-window",
        action="store_true",
        help="look at overlapping squares of the size that the model was trained on",
    )
    parser.add_argument(
        "--scales",
        type=numbers,
        default=(1.0,),
        metavar="S,S,...",
        help="image sizes to average over, relative to the model's; 0.5,0.75,1,1.25,1.5,1.75 are "
        "those of the published multi-scale figures (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="average over mirror images as well")
    parser.add_argument(
        "--opacity", type=share, default=0.55, metavar="0..1", help="of the tint (default: 0.55)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")


def numbers(text: str) -> tuple[float, ...]:
    """Reads positive numbers with commas between them."""
    values = tuple(map(float, text.split(",")))
    if not all(0 < value < 100 for value in values):
        raise argparse.ArgumentTypeError(f"must be positive numbers but got {text}")
    return values


def run(args: argparse.Namespace) -> int:
    """Segments the image and writes the three files."""
    from ..data import read_image
    from ..models import UPerNet, load_pretrained
    from ..tasks.segmentation import segment

    overlay: Path = args.out
    mask, facts_file = overlay.with_name(f"{overlay.stem}_mask.png"), overlay.with_suffix(".json")
    keep_input(args.image, overlay, mask, facts_file)
    image = read_image(args.image)  # before a model is downloaded for it
    model = load_pretrained(UPerNet, args.model, model=args.variant)
    if not model.config.num_classes:
        raise ValueError(f"model '{args.model}' has no classifier, only features.")
    result = segment(
        model,
        image,
        scales=args.scales,
        flip=args.flip,
        sliding_window=args.sliding_window,
    )
    facts = {
        "image": args.image,
        "height": result.mask.shape[0],
        "width": result.mask.shape[1],
        "model": args.model,
        "overlay": str(overlay),
        "mask": str(mask),
        "classes": result.classes(),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    write_whole(overlay, lambda file: result.overlay(args.opacity).save(file, "PNG"))
    write_whole(mask, lambda file: result.mask_image().save(file, "PNG"))
    write_whole(facts_file, lambda file: file.write(f"{text}\n".encode()))
    if args.json:
        print(text)
    else:
        lines = [f"{entry['share']:8.1%}  {entry['class']}" for entry in facts["classes"]]
        print("\n".join([*lines, f"written: {overlay}, {mask}, {facts_file}"]))
    return 0

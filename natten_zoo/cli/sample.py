"""Make images of noise with a diffusion model, and a grid of them.

  natten-zoo sample -n 16 --label Sneaker Bag -o clothes.png

writes a grid; --folder also writes each image. The default model makes clothes of 28 x 28 gray
pixels and is in the package. No weights of larger ones are published that this project has seen:
train one (docs/tasks/sample.md), or give a checkpoint of k-diffusion's.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_whole
from ._arguments import add_own_model_argument, png, positive, weights_options

if TYPE_CHECKING:
    from ..models import HDiT


DEFAULT_MODEL = "hdit_pico_fashion"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_own_model_argument(parser, DEFAULT_MODEL)
    parser.add_argument(
        "-o",
        "--out",
        type=png,
        default=Path("samples.png"),
        metavar="PNG",
        help="the grid (default: %(default)s)",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="also write each image, as DIR/00000.png ..."
    )
    parser.add_argument(
        "-n", "--count", type=positive, default=16, metavar="N", help="images (default: 16)"
    )
    parser.add_argument(
        "--steps", type=positive, default=50, metavar="N", help="of the sampler (default: 50)"
    )
    parser.add_argument(
        "--sampler",
        choices=("euler", "heun", "dpm_2", "dpmpp_2m"),
        default="dpmpp_2m",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--label",
        nargs="+",
        metavar="NAME|N",
        help="what the images shall show, in turn: classes, by name or number",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="G",
        help="how much a label counts (default: 1, as trained)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of an image in pixels (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images at a time"
    )
    parser.add_argument(
        "--scale", type=positive, default=1, metavar="N", help="enlarge the grid (default: 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Makes the images and writes them."""
    from tqdm import tqdm

    from ..models import HDiT, load_pretrained
    from ..tasks.sampling import sample

    model = load_pretrained(HDiT, args.model, model=args.variant, **weights_options(args))
    told = [label_number(label, model) for label in args.label or ()]
    labels = [told[i % len(told)] for i in range(args.count)] if told else None
    with tqdm(unit="step", file=sys.stderr, disable=None, leave=False) as bar:

        def each(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        names = ("count", "steps", "sampler", "guidance", "size", "seed", "batch_size")
        options = {name: getattr(args, name) for name in names}
        found = sample(model, labels=labels, each=each, **options)
    grid = found.grid(scale=args.scale)
    write_whole(args.out, lambda file: grid.save(file, "PNG"))
    for number, image in enumerate(found.images() if args.folder else ()):
        write_whole(args.folder / f"{number:05}.png", partial(image.save, format="PNG"))
    print(f"{args.count} images: {args.out}" + (f", {args.folder}" if args.folder else ""))
    return 0


def label_number(label: str, model: HDiT) -> int:
    """The number of a class of a model, by number or by name.

    Raises:
        ValueError: It has none of that name.
    """
    from ..data.labels import class_names
    from ..data.names import find

    if label.isdecimal():
        return int(label)
    names = (model.record and class_names(model.record.classes)) or ()
    (number,) = find([label], names)
    if number is None:
        known = f"one of {', '.join(names)}" if names else "a number, as the model knows no names,"
        raise ValueError(f"--label must be {known} but got {label!r}.")
    return number

"""Restore the photo of a face that was compressed, blurred, noisy or small.

  natten-zoo restore face.jpg -o restored.png

PHOTO is a square with one aligned face, as in FFHQ: upright, the eyes in the middle, from the
forehead to the chin. 512 x 512 pixels are taken as they are, other squares are resized to them; of
a photo that is no square --crop takes the middle, and without it that is an error. Faces are not
looked for, and what is no aligned face is made into one: this is for nothing else.

The default model is PMRF's, which is downloaded once (700 MB).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import write_whole
from ._arguments import add_own_model_argument, keep_input, png, positive, weights_options

DEFAULT_MODEL = "pmrf_blind_face_restoration"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("photo", metavar="PHOTO", help="an image file, a square with one face")
    parser.add_argument(
        "-o",
        "--out",
        type=png,
        default=Path("restored.png"),
        metavar="PNG",
        help="the restored face (default: %(default)s)",
    )
    add_own_model_argument(parser, DEFAULT_MODEL)
    parser.add_argument(
        "--mean",
        type=png,
        metavar="PNG",
        help="also write the blurred mean of all that the face may have been",
    )
    parser.add_argument(
        "--steps", type=positive, default=25, metavar="N", help="of the flow (default: 25)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--crop", action="store_true", help="take the middle square of a photo that is none"
    )


def run(args: argparse.Namespace) -> int:
    """Restores the face and writes it."""
    from tqdm import tqdm

    from ..data.reading import read_image
    from ..models import PMRF, load_pretrained
    from ..tasks.restoration import restore, square

    targets = [path for path in (args.out, args.mean) if path]
    keep_input(args.photo, *targets)
    face = square(read_image(args.photo), args.crop)  # before a model is loaded for it
    model = load_pretrained(PMRF, args.model, model=args.variant, **weights_options(args))
    with tqdm(total=args.steps, unit="step", file=sys.stderr, disable=None, leave=False) as bar:
        result = restore(
            model, face, steps=args.steps, seed=args.seed, each=lambda *_: bar.update()
        )
    write_whole(args.out, lambda file: result.image.save(file, "PNG"))
    if args.mean:
        write_whole(args.mean, lambda file: result.mean.save(file, "PNG"))
    if face.size != result.looked_at.size:
        print(
            f"{args.photo}: {face.width}x{face.height} was resized to "
            f"{result.looked_at.width}x{result.looked_at.height}",
            file=sys.stderr,
        )
    print(f"restored: {args.out}" + (f", mean: {args.mean}" if args.mean else ""))
    return 0

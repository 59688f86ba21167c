"""Say what is on images.

IMAGE is a file, a folder (searched to any depth) or a quoted pattern such as '*.jpg' or
'photos/**/*.png'. The image is prepared as the model's checkpoint asks for; gray, transparent,
16-bit, CMYK and turned (EXIF) images are understood. A file that cannot be read is reported and
the others are still done.

The default model knows ten kinds of clothes on 28 x 28 pixels, in gray. For photos:

  natten-zoo classify --model nat_mini photo.jpg

Exit status: 0 all images were classified, 1 some were not, 2 none could be.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ._arguments import (
    add_model_argument,
    add_top_argument,
    chosen_model,
    positive,
    weights_options,
)
from ._text import as_plain, print_result, progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder or a pattern")
    add_model_argument(parser)
    add_top_argument(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per image and line"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="images at a time"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="class names: one a line, or a JSON list; for models that know none",
    )


def run(args: argparse.Namespace) -> int:
    """Classifies the images and prints the result of each."""
    from ..data import ImageError
    from ..data.image_files import find_images
    from ..data.labels import read_labels
    from ..tasks.classification import classify_each, open_classifier, output_names

    files = find_images(args.images)
    model_name = chosen_model(args)
    model, _ = open_classifier(model_name, args.variant, **weights_options(args))
    names = read_labels(args.labels) if args.labels else output_names(model)
    if len(names) != model.config.num_classes:
        raise ValueError(
            f"'{args.labels}' must name {model.config.num_classes} classes but names {len(names)}."
        )
    failed = 0
    answers = classify_each(model, files, args.top, names=names, batch_size=args.batch_size)
    with progress(len(files), args.batch_size) as bar:
        for file, answer in zip(files, answers, strict=True):
            result: dict[str, Any] = {"file": str(file)}
            if isinstance(answer, ImageError):
                failed += 1
                result["error"] = str(answer)
            else:
                result["classes"] = as_plain(answer.best)
            print_result(result, args.json, bar.write)
            bar.update()
    if failed:
        print(f"{failed} of {len(files)} images could not be read", file=sys.stderr)
    return 0 if not failed else 1 if failed < len(files) else 2

"""Classify the images in the package with the model in the package, offline, and draw a picture.

The model is nat_pico_fashion, a small NAT that this project trained on Fashion-MNIST: ten kinds
of clothes, 28 x 28 pixels, gray. The images are the first two of each class of the test set. The
picture shows them with the model's answers and, for one query, the neighborhood that two layers
look at with the attention weights in percent.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import DEFAULT_MODEL, png
from ._text import table

if TYPE_CHECKING:
    from ..data import Preprocess
    from ..models import Classifier
    from ..viz.figures import Sample

SHOWN, POINT, LAYERS = "00_t-shirt-top_00019.png", (0.3, 0.35), (0, 4)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "-o", "--out", type=png, default="demo.png", metavar="PNG", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes the picture."""
    from ..tasks.classification import open_classifier

    model, preprocess = open_classifier(DEFAULT_MODEL)
    with as_file(files("natten_zoo") / "assets" / "samples") as folder:
        paths = sorted(folder.glob("*.png"))
        samples = classify(model, preprocess, paths)
        rows = [
            [path.name, s.label, s.predicted, f"{s.probability:.1%}", "" if s.right else "wrong"]
            for path, s in zip(paths, samples, strict=True)
        ]
        print(table(["image", "is", "model says", "sure", ""], rows, "<<<><"))
        print(f"\n{summary(samples)}")
        try:
            print(f"picture: {draw(model, preprocess, samples, folder / SHOWN, args.out)}")
        except ImportError as error:
            print(f"no picture: {error}", file=sys.stderr)
            return 1
    return 0


def classify(model: Classifier, preprocess: Preprocess, paths: list[Path]) -> list[Sample]:
    """The packaged images with their labels, which their names begin with, and the answers."""
    import mlx.core as mx
    import numpy as np

    from ..data import read_image
    from ..tasks.classification import output_names, probabilities
    from ..viz.figures import Sample

    names = output_names(model)
    rows = probabilities(model, mx.stack([preprocess(path) for path in paths]))
    return [
        Sample(
            image=np.asarray(read_image(path, preprocess.channels)),
            label=names[int(path.name[:2])],
            predicted=names[row.argmax()],
            probability=float(row.max()),
        )
        for path, row in zip(paths, rows, strict=True)
    ]


def summary(samples: list[Sample]) -> str:
    """How many samples are right, and how many of the whole test set were after training."""
    from ..models import get_record

    text = f"{sum(s.right for s in samples)} of {len(samples)} images right"
    top1 = get_record("nat_pico_fashion").top1
    return f"{text}; {top1:.2f} % of the 10,000 test images when it was trained" if top1 else text


def draw(
    model: Classifier, preprocess: Preprocess, samples: list[Sample], shown: Path, out: Path
) -> Path:
    """Writes the picture."""
    import numpy as np

    from ..data import read_image
    from ..viz import view_layers
    from ..viz.figures import demo_figure, save_figure

    views = view_layers(model, preprocess(shown)[None])
    image = np.asarray(preprocess.crop(read_image(shown, preprocess.channels)))
    title = f"nat_pico_fashion: {summary(samples)}"
    figure = demo_figure(title, samples, image, [views[i] for i in LAYERS], POINT)
    return save_figure(figure, out)

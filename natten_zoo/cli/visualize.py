"""Draw where a model looks: windows, attention weights, reach and rollout of one query.

The picture has a row per level of the model. The two panels on the left show the window of the
query in the level's first layer and in its most dilated one, colored by the attention weights; the
third after how many layers the query comes to see each token; the last the attention rollout, an
estimate of what the query has gathered from where in the first level's map.

  natten-zoo visualize photo.jpg --model dinat_mini --query 80,120 --out looks.png

Needs matplotlib: pip install 'natten-zoo[viz]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._arguments import add_model_argument, chosen_model, keep_input, png, weights_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    add_model_argument(parser)
    parser.add_argument(
        "-q",
        "--query",
        type=point,
        metavar="Y,X",
        help="a pixel of what the model sees, the resized and cropped image (default: its center)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=png,
        default="visualize.png",
        metavar="PNG",
        help="default: %(default)s",
    )


def point(text: str) -> tuple[int, int]:
    """Reads `Y,X`."""
    y, x = map(int, text.split(","))
    return y, x


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    import mlx.core as mx
    import numpy as np

    from ..data import read_image
    from ..tasks.classification import open_classifier, output_names
    from ..viz import view_layers
    from ..viz.figures import save_figure
    from ..viz.inside import inside_figure

    keep_input(args.image, args.out)
    model_name = chosen_model(args)
    model, preprocess = open_classifier(model_name, args.variant, **weights_options(args))
    size = preprocess.size
    query = args.query or (size // 2, size // 2)
    if not all(0 <= p < size for p in query):
        raise ValueError(f"--query must lie in {size} x {size} pixels but got {query}.")
    picture = preprocess.crop(read_image(args.image, preprocess.channels))
    inputs = preprocess(args.image)[None]
    answer = int(mx.argmax(model(inputs)))
    name = output_names(model)[answer]
    title = (
        f"{Path(args.image).name}: {name}, says {model_name}; from the pixel {query[0]},{query[1]}"
    )
    fractions = query[0] / size, query[1] / size
    figure = inside_figure(title, np.asarray(picture), view_layers(model, inputs), fractions)
    print(save_figure(figure, args.out, dpi=100))
    return 0

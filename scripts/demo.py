#!/usr/bin/env python3
"""A page to look inside a model: drop an image, see its labels, click a pixel, see where it looks.

    python scripts/demo.py                         the model and the images in the package, offline
    python scripts/demo.py --model dinat_mini      any classifier of `natten-zoo list`, or a path
    python scripts/demo.py --model upernet_nat_mini

The last, and a Mask2Former or OneFormer, shows what was found: point at a segment, and its mask is
lit, its class and its score are named.

Needs Gradio and matplotlib: pip install 'natten-zoo[demo]'.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # the page works offline, and tells nobody

try:
    import gradio as gr
except ImportError:
    sys.exit("the page needs Gradio: pip install 'natten-zoo[demo]'")
import mlx.core as mx
import numpy as np
from demo_segments import SegmentsPage
from PIL import Image

import natten_zoo
from natten_zoo.cli._arguments import DEFAULT_MODEL, add_model_argument, weights_options
from natten_zoo.data import Preprocess, read_image
from natten_zoo.models import Model, UPerNet, load_pretrained
from natten_zoo.models.universal import Universal
from natten_zoo.tasks.classification import output_names, prepared
from natten_zoo.viz import LayerView, view_layers
from natten_zoo.viz.inside import layer_figure, layers_figure

SAMPLES = Path(natten_zoo.__file__).parent / "assets" / "samples"
# What the model sees is shown at least this large, for small images have few pixels to hit.
SHOWN = 448
CSS = ".gradio-container {max-width: 1180px !important} footer {display: none !important}"
PIXEL = "**What the model sees.** Click a pixel."
LAYER = (
    "**One layer from that pixel**, the query, outlined in blue: its window and attention weights; "
    "the tokens that it sees through this layer and those before it on the same map; what has come "
    "together in it from the image through all layers (attention rollout)."
)
LAYERS = "**All layers**: attention weights, mean over the heads."


@dataclass(frozen=True, eq=False)  # Gradio hashes it to see whether it changed
class Look:
    """An image as a model saw it."""

    image: np.ndarray
    views: list[LayerView]


class Page:
    """What the page computes; `build` draws it.

    Args:
        name: Of the model, for the title.
        model: A classifier with neighborhood attention.
        preprocess: How its images are prepared.
    """

    def __init__(self, name: str, model: Model, preprocess: Preprocess) -> None:
        self.name, self.model, self.preprocess = name, model, preprocess
        files = SAMPLES.glob("*.png") if name == DEFAULT_MODEL else ()
        self.samples = sorted(map(str, files))
        size = preprocess.size
        self.zoom = -(-SHOWN // size)
        self.depth = len(view_layers(model, mx.zeros((1, size, size, preprocess.channels))))
        mx.eval(model.parameters())  # here, for Gradio's threads

    def classify(self, path: str | None) -> tuple[Look | None, Image.Image | None, Any]:
        """The image as the model sees it, for the state and to click on, and its labels."""
        if path is None:
            return None, None, None
        try:
            picture = self.preprocess.crop(read_image(path, self.preprocess.channels))
        except ValueError as error:
            raise gr.Error(str(error)) from error
        inputs = self.preprocess(path)[None]
        views = view_layers(self.model, inputs)
        shares = mx.softmax(self.model(inputs)[0].astype(mx.float32))
        mx.eval(shares, [view.input for view in views])
        side = self.zoom * picture.width
        shown = picture.resize((side, side), Image.Resampling.NEAREST)
        labels = dict(zip(output_names(self.model), map(float, np.array(shares)), strict=True))
        return Look(np.asarray(picture), views), shown, labels

    def point(self, event: gr.SelectData) -> tuple[float, float]:
        """Where the image was clicked, as fractions of its height and width."""
        side = self.zoom * self.preprocess.size
        x, y = (min(position, side - 1) for position in event.index)
        return y / side, x / side

    def draw_layer(self, look: Look | None, point: tuple[float, float], layer: int) -> Any:
        """One layer's picture."""
        return None if look is None else layer_figure(look.image, look.views, layer - 1, point)

    def draw_layers(self, look: Look | None, point: tuple[float, float]) -> Any:
        """The picture of all layers."""
        return None if look is None else layers_figure(look.image, look.views, point)

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="natten_zoo", analytics_enabled=False) as page:
            gr.Markdown(f"# Where does {self.name} look?")
            look, point = gr.State(), gr.State((0.5, 0.5))
            with gr.Row():
                with gr.Column(min_width=240):
                    gr.Markdown("**An image.** Drop one here.")
                    image = gr.Image(
                        next(iter(self.samples), None), type="filepath", image_mode=None,
                        sources=["upload"], show_label=False, height=300, elem_id="image",
                    )  # fmt: skip
                with gr.Column(min_width=240):
                    gr.Markdown(PIXEL)
                    seen = gr.Image(
                        show_label=False, interactive=False, height=300, format="png",
                        buttons=[], elem_id="seen",
                    )  # fmt: skip
                with gr.Column(min_width=240):
                    gr.Markdown("**What it says.**")
                    label = gr.Label(
                        num_top_classes=5, show_label=False, show_heading=False, elem_id="label"
                    )
            if self.samples:
                gr.Examples(self.samples, image, examples_per_page=20, label="or one of these")
            gr.Markdown(LAYER)
            layer = gr.Slider(1, self.depth, 1, step=1, label="layer", elem_id="layer")
            one = gr.Plot(show_label=False, format="png", elem_id="one")
            gr.Markdown(LAYERS)
            every = gr.Plot(show_label=False, format="png", elem_id="every")

            # One after another: layers are recorded while nothing else runs the model.
            turn: Any = {"concurrency_limit": 1, "concurrency_id": "model"}
            for event in (page.load, image.change):
                event(self.classify, image, [look, seen, label], **turn)
            seen.select(self.point, None, point)
            for changed in (look, point):
                changed.change(self.draw_layers, [look, point], every, **turn)
            for control in (look, point, layer):
                control.change(self.draw_layer, [look, point, layer], one, **turn)
        return page


def make_page(name: str, variant: str | None, weights: dict[str, Any]) -> Page | SegmentsPage:
    """The page that fits a model.

    Raises:
        ValueError: There is none for such models.
    """
    model: Any = load_pretrained(None, name, model=variant, **weights)
    if isinstance(model, UPerNet | Universal):
        return SegmentsPage(name, model)
    return Page(name, model, prepared(model, name))


def main() -> None:
    """Serves the page until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    args = parser.parse_args()
    try:
        name = args.model or DEFAULT_MODEL
        page = make_page(name, args.variant, weights_options(args)).build()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    page.launch(
        server_name=args.host, server_port=args.port, inbrowser=args.open, css=CSS,
        theme=gr.themes.Default(primary_hue="rose"), footer_links=[], show_error=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()

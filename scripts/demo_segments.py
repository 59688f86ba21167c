"""scripts/demo.py for models that find segments: what is pointed at is lit and named."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import mlx.core as mx

from natten_zoo.data import read_image
from natten_zoo.models import UPerNet
from natten_zoo.models.universal import TASKS, Universal
from natten_zoo.tasks import find_segments, segment
from natten_zoo.tasks.segment_page import segment_page
from natten_zoo.tasks.segmentation import Segmentation
from natten_zoo.tasks.segments import Segments

# The long side of what is shown: a page holds each of its pixels.
LONGEST = 1024
WORDS = (
    "**What was found.** Point at it: the segment's mask is lit, its class and, where segments are "
    "found one by one, its score are named."
)


class SegmentsPage:
    """What the page computes; `build` draws it.

    Args:
        name: Of the model, for the title.
        model: Finds classes of pixels or segments.
    """

    def __init__(self, name: str, model: UPerNet | Universal) -> None:
        if not model.config.num_classes:
            raise ValueError(f"model '{name}' has no classifier, only features.")
        self.name, self.model = name, model
        trained = () if model.record is None else model.record.tasks
        self.tasks = ("semantic",) if isinstance(model, UPerNet) else trained or TASKS
        mx.eval(model.parameters())  # here, for Gradio's threads

    def find(self, path: str | None, task: str) -> str:
        """The frame in which the pointer lights up what was found in an image."""
        if path is None:
            return ""
        try:
            image = read_image(path)
            image.thumbnail((LONGEST, LONGEST))
            found: Segmentation | Segments
            if isinstance(self.model, UPerNet):
                found = segment(self.model, image)
            else:
                found = find_segments(self.model, image, task)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        page = html.escape(segment_page(found, self.name))
        shape = f"{image.width} / {image.height + 100 * image.width // LONGEST}"
        style = f"width: 100%; aspect-ratio: {shape}; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="natten_zoo", analytics_enabled=False) as page:
            gr.Markdown(f"# What does {self.name} find?")
            with gr.Row():
                with gr.Column(min_width=240, scale=1):
                    gr.Markdown("**An image.** Drop one here.")
                    image = gr.Image(
                        type="filepath", image_mode=None, sources=["upload"], show_label=False,
                        height=300, elem_id="image",
                    )  # fmt: skip
                    task = gr.Radio(
                        self.tasks, value=self.tasks[0], label="task", elem_id="task",
                        visible=len(self.tasks) > 1,
                    )  # fmt: skip
                with gr.Column(min_width=240, scale=3):
                    gr.Markdown(WORDS)
                    found = gr.HTML(elem_id="found")
            turn: Any = {"concurrency_limit": 1, "concurrency_id": "model"}
            for control in (image, task):
                control.change(self.find, [image, task], found, **turn)
        return page

"""Pictures of windows, weights and results. Needs matplotlib, the extra `viz`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_whole
from .attention import LayerView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from ..ops import Neighborhood
    from ..tasks.evaluation import Evaluation

INK, FAINT, RIGHT, WRONG, QUERY = "#22262b", "#8a9099", "#1a7f4b", "#c8372d", "#1769aa"
WARM = "#d1495b"
TITLE: dict[str, Any] = {"fontsize": 9.5, "color": INK, "pad": 6}
_DEMO_CAPTION = (
    "Left: what the model says and how sure it is; green is right. "
    "Right: two layers, the window of the blue query and its attention weights in percent."
)
_CENTERED: dict[str, Any] = {"ha": "center", "va": "center_baseline"}


@dataclass(frozen=True)
class Sample:
    """An image with its label and what a model said.

    Attributes:
        image: `[H, W]` or `[H, W, 3]` of uint8.
        label: The true class.
        predicted: The model's class.
        probability: Of that class.
    """

    image: np.ndarray
    label: str
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the model is right."""
        return self.label == self.predicted


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'natten-zoo[viz]'") from error
    return Figure(figsize=(width, height), facecolor="white")


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 120) -> Path:
    """Writes a figure as PNG, whole or not at all, and makes its folder."""
    return write_whole(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def draw_weights(axes: Axes, image: np.ndarray, view: LayerView, query: tuple[int, ...]) -> None:
    """Draws the window of one query over an image, each key colored by its attention weight.

    The color scale ends at `darkest_weight`; the numbers, where there is room, are percent
    (mean over the heads). The query is outlined, and the tokens are the faint grid.

    Args:
        axes: Where to draw.
        image: What the model saw, `[H, W]` or `[H, W, 3]` of uint8.
        view: A layer of the model that saw it.
        query: Row and column of the query token.
    """
    show_image(axes, image, faded=True)
    rows, columns = (keys[keys < n] for keys, n in zip(view.window(query), view.size, strict=True))
    weights = view.weight_map(query)
    darkest = darkest_weight(weights)
    height, width = (side / n for side, n in zip(image.shape, view.size, strict=False))
    _grid(axes, image, view.size)
    for y, x in np.array(np.meshgrid(rows, columns)).reshape(2, -1).T:
        share = weights[y, x] / darkest
        draw_tile(axes, (y, x), height, width, fc=WARM, lw=0, alpha=0.1 + 0.8 * float(share))
        draw_tile(axes, (y, x), height, width, fill=False, ec=WARM, lw=0.8)
        if max(view.size) <= 16:
            center = (x + 0.5) * width - 0.5, (y + 0.5) * height - 0.5
            style = _CENTERED | {"color": "white" if share > 0.5 else INK, "fontsize": 8.5}
            axes.text(*center, f"{100 * weights[y, x]:.0f}", **style)
    draw_tile(axes, query, height, width, fill=False, ec=QUERY, lw=2.6, zorder=3)


def darkest_weight(weights: np.ndarray) -> float:
    """Where the color scale of attention weights ends: the largest, if it stands out.

    Weights that are all alike, as an untrained layer's, say nothing and are drawn pale.

    Examples:
        >>> darkest_weight(np.array([0.25, 0.25, 0.25, 0.25]))
        1.0
        >>> darkest_weight(np.array([0.9] + 16 * [0.1 / 16])) == 0.9
        True
    """
    return max(float(weights.max()), 4 / max(1, int((weights > 0).sum())))


def draw_window(
    axes: Axes, neighborhood: Neighborhood, size: tuple[int, int], query: tuple[int, int]
) -> None:
    """Draws the keys that a query sees on an empty map of `size` tokens.

    Examples:
        >>> from natten_zoo.ops import Neighborhood
        >>> axes = new_figure(3, 3).add_subplot()
        >>> draw_window(axes, Neighborhood.of(2, 3, dilation=2), (9, 9), (0, 4))
    """
    show_image(axes, np.zeros(size, np.uint8))
    _grid(axes, np.zeros(size), size)
    keys = [neighborhood.keys(axis, position, size[axis]) for axis, position in enumerate(query)]
    for token in itertools.product(*keys):
        draw_tile(axes, token, 1, 1, fc=WARM, ec="white", lw=0.8, alpha=0.7)
    draw_tile(axes, query, 1, 1, fill=False, ec=QUERY, lw=2.6, zorder=3)


def _grid(axes: Axes, image: np.ndarray, size: Sequence[int]) -> None:
    bottom, right = (side - 0.5 for side in image.shape[:2])
    ys, xs = (np.linspace(-0.5, e, n + 1) for e, n in zip((bottom, right), size, strict=True))
    axes.hlines(ys, -0.5, right, colors=FAINT, lw=0.4, alpha=0.35)
    axes.vlines(xs, -0.5, bottom, colors=FAINT, lw=0.4, alpha=0.35)


def draw_tile(axes: Axes, token: Sequence[int], height: float, width: float, **style: Any) -> None:
    """Draws a token of `height` by `width` pixels."""
    from matplotlib.patches import Rectangle

    corner = token[1] * width - 0.5, token[0] * height - 0.5
    axes.add_patch(Rectangle(corner, width, height, **style))


def show_image(axes: Axes, image: np.ndarray, faded: bool = False) -> None:
    """Shows an image without axes; gray ones dark on white, as ink."""
    if image.ndim == 2:
        axes.imshow(image, cmap="Greys", vmin=0, vmax=600 if faded else 255)
    else:
        axes.imshow(255 - (255 - image) // 2 if faded else image)
    axes.set_axis_off()


def demo_figure(
    title: str,
    samples: Sequence[Sample],
    image: np.ndarray,
    views: Sequence[LayerView],
    point: tuple[float, float],
) -> Figure:
    """Classified images on the left; on the right where two layers look from one point.

    Args:
        title: One line above all.
        samples: The images, at most 20.
        image: What the model saw when `views` were taken.
        views: Two layers.
        point: The query as fractions of height and width.
    """
    figure = new_figure(13.0, 7.9)
    figure.text(0.03, 0.953, title, fontsize=15, color=INK, weight="bold")
    figure.text(0.03, 0.923, _DEMO_CAPTION, fontsize=10, color=FAINT)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    left, right = halves
    draw_samples(left, samples)
    panels = right.subplots(2, 1, gridspec_kw=margins(0.02, 0.98, 0.02, 0.845, hspace=0.16))
    for axes, view in zip(panels, views, strict=True):
        draw_weights(axes, image, view, view.token(point))
        axes.set_title(describe(view), **TITLE)
    return figure


def draw_samples(figure: SubFigure, samples: Sequence[Sample], columns: int = 5) -> None:
    """A sheet of images, each with what the model says below, green if right and red if not."""
    spaces = margins(0.04, 0.96, 0.07, 0.87, hspace=0.42, wspace=0.25)
    grid = figure.subplots(-(-len(samples) // columns), columns, gridspec_kw=spaces)
    for axes in grid.flat[len(samples) :]:
        axes.set_visible(False)
    for axes, sample in zip(grid.flat, samples, strict=False):
        show_image(axes, sample.image)
        below = {"ha": "center", "va": "top", "transform": axes.transAxes}
        color = RIGHT if sample.right else WRONG
        axes.text(0.5, -0.05, sample.predicted, color=color, fontsize=11, weight="bold", **below)
        note = f"{sample.probability:.0%}" + ("" if sample.right else f", is {sample.label}")
        axes.text(0.5, -0.2, note, color=FAINT, fontsize=9, **below)


def describe(view: LayerView) -> str:
    """A layer in two lines: its path in the model, and what a query of it sees."""
    hood = view.neighborhood
    size, window = ("×".join(map(str, n)) for n in (view.size, hood.kernel_size))
    dilation = max(hood.dilation)  # of several axes: in time DiNAT3D has none
    dilated = "" if dilation == 1 else f", dilation {dilation}"
    return f"{view.name}\n{window} of {size} tokens{dilated}"


def margins(left: float, right: float, bottom: float, top: float, **spaces: float) -> Any:
    """Keyword arguments of a grid of axes."""
    return {"left": left, "right": right, "bottom": bottom, "top": top, **spaces}


def confusion_figure(result: Evaluation) -> Figure:
    """Shares of each true class by predicted class; named and numbered while that is legible."""
    present, counts = result.confusion()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = min(4.0 + 0.45 * len(present), 12.0)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("the model says")
    axes.set_ylabel("it is")
    axes.set_title(f"top-1 {result.top1:.2f} % of {len(result.labels):,} images", color=INK)
    if len(present) <= 40:
        names = [result.names[label] for label in present]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            style = _CENTERED | {"color": "white" if share > 0.5 else INK, "fontsize": 8}
            axes.text(column, row, f"{100 * share:.0f}", **style)
    figure.tight_layout()
    return figure

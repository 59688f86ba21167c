"""Pictures of where a model looks from one point, layer by layer. Needs the extra `viz`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .attention import LayerView, by_level, reach, rollout
from .figures import (
    INK,
    QUERY,
    TITLE,
    darkest_weight,
    describe,
    draw_tile,
    draw_weights,
    margins,
    new_figure,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def inside_figure(
    title: str, image: np.ndarray, views: Sequence[LayerView], point: tuple[float, float]
) -> Figure:
    """Where a model looks from one point: a row per level, from the finest map to the coarsest.

    Each row shows the level's first layer and its most dilated one, how many layers the query
    needs to see each token, and the attention rollout from the level's end to the image.

    Args:
        title: One line above all.
        image: What the model saw when `views` were taken.
        views: All layers of the model.
        point: The query as fractions of height and width.
    """
    levels = by_level(views)
    figure = new_figure(13.0, 0.7 + 3.6 * len(levels))
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.35 / height, title, fontsize=14, color=INK, weight="bold", va="center")
    spaces = margins(0.02, 0.98, 0.1 / height, 1 - 1.05 / height, hspace=0.17, wspace=0.06)
    rows = figure.subplots(len(levels), 4, squeeze=False, gridspec_kw=spaces)
    passed: list[LayerView] = []
    for panels, level in zip(rows, levels, strict=True):
        passed += level
        draw_layer(panels[0], image, level[0], point)
        draw_layer(panels[1], image, most_dilated(level), point)
        draw_reach(panels[2], image, level, point)
        draw_rollout(panels[3], image, passed, point)
    return figure


def layer_figure(
    image: np.ndarray, views: Sequence[LayerView], index: int, point: tuple[float, float]
) -> Figure:
    """Where one layer looks from one point, and what has come together until there.

    Its window with the attention weights; how far the query sees through its level's layers up to
    this one; the attention rollout from this layer to the image.

    Args:
        image: What the model saw when `views` were taken.
        views: All layers of the model.
        index: Of the layer.
        point: The query as fractions of height and width.
    """
    passed = views[: index + 1]
    figure = new_figure(12.0, 4.5)
    panels = figure.subplots(1, 3, gridspec_kw=margins(0.01, 0.99, 0.02, 0.88, wspace=0.04))
    draw_layer(panels[0], image, views[index], point)
    draw_reach(panels[1], image, by_level(passed)[-1], point)
    draw_rollout(panels[2], image, passed, point)
    return figure


def layers_figure(
    image: np.ndarray, views: Sequence[LayerView], point: tuple[float, float], columns: int = 8
) -> Figure:
    """The attention weights of one point in every layer, side by side.

    Args:
        image: What the model saw when `views` were taken.
        views: All layers of the model.
        point: The query as fractions of height and width.
        columns: Pictures in a row.
    """
    rows = -(-len(views) // columns)
    figure = new_figure(12.0, 1.75 * rows)
    spaces = margins(0.01, 0.99, 0.02, 1 - 0.2 / rows, hspace=0.25, wspace=0.08)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spaces)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (axes, view) in enumerate(zip(grid.flat, views, strict=False), start=1):
        query = view.token(point)
        weights = view.weight_map(query)
        shown = np.where(weights > 0, weights, np.nan)
        draw_map(axes, image, shown, query, "Reds", top=darkest_weight(weights))
        axes.set_title(f"{number}", **{**TITLE, "pad": 3})
    return figure


def most_dilated(level: Sequence[LayerView]) -> LayerView:
    """The layer of a level that looks farthest, the last of several."""
    return max(reversed(level), key=lambda view: view.layer.neighborhood.dilation)


def draw_layer(axes: Axes, image: np.ndarray, view: LayerView, point: tuple[float, float]) -> None:
    """Draws a layer's window and weights at a point."""
    draw_weights(axes, image, view, view.token(point))
    axes.set_title(describe(view), **TITLE)


def draw_reach(
    axes: Axes, image: np.ndarray, level: Sequence[LayerView], point: tuple[float, float]
) -> None:
    """Draws how many of some layers of one level it takes to see each token from a point."""
    query = level[-1].token(point)
    needed = reach(level, query)
    draw_map(axes, image, np.where(needed < 0, np.nan, needed), query, "viridis_r")
    axes.set_title(f"reach\nseen after 0 to {needed.max()} layers, light to dark", **TITLE)


def draw_rollout(
    axes: Axes, image: np.ndarray, views: Sequence[LayerView], point: tuple[float, float]
) -> None:
    """Draws the attention rollout from a point of the last layer's map to the first's."""
    query = views[-1].token(point)
    gathered = np.sqrt(rollout(views, query))  # so that small shares show
    draw_map(axes, image, gathered, query, "magma", views[-1].size)
    axes.set_title(f"rollout\nthrough {len(views)} layers", **TITLE)


def draw_map(
    axes: Axes,
    image: np.ndarray,
    values: np.ndarray,
    query: tuple[int, ...],
    colors: str,
    size: tuple[int, ...] | None = None,
    *,
    top: float | None = None,
) -> None:
    """Draws a value per token over an image; the query is a token of a map of `size`.

    Colors go from the smallest to the largest value, or from zero to `top`.
    """
    show_image(axes, image, faded=True)
    bottom, right = (side - 0.5 for side in image.shape[:2])
    image_of = axes.imshow(values, cmap=colors, alpha=0.75, extent=(-0.5, right, bottom, -0.5))
    if top is not None:
        image_of.set_clim(0, top)
    height, width = (side / n for side, n in zip(image.shape, size or values.shape, strict=False))
    draw_tile(axes, query, height, width, fill=False, ec=QUERY, lw=2.6, zorder=3)

"""Draw what a query sees under each option of neighborhood attention: docs/images/windows.png.

    python scripts/draw_windows.py

Needs matplotlib: pip install 'natten-zoo[viz]'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natten_zoo.ops import Neighborhood
from natten_zoo.viz.figures import INK, draw_window, new_figure, save_figure

OUT = Path(__file__).parents[1] / "docs" / "images" / "windows.png"
SIZE = (15, 15)
PANELS: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("kernel_size=5", {"kernel_size": 5}, (7, 7)),
    ("at the border the window moves in", {"kernel_size": 5}, (0, 13)),
    ("dilation=3", {"kernel_size": 5, "dilation": 3}, (7, 7)),
    ("is_causal=True", {"kernel_size": 5, "is_causal": True}, (7, 7)),
    ("kernel_size=(3, 9), dilation=(2, 1)", {"kernel_size": (3, 9), "dilation": (2, 1)}, (7, 7)),
    ("window_stride=4: shared by 4 x 4 queries", {"kernel_size": 5, "window_stride": 4}, (11, 8)),
]


def main() -> None:
    """Writes the picture."""
    figure = new_figure(10.5, 7.4)
    spaces = {"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.95, "hspace": 0.12}
    grid = figure.subplots(2, 3, gridspec_kw={**spaces, "wspace": 0.08})
    for axes, (title, options, query) in zip(grid.flat, PANELS, strict=True):
        draw_window(axes, Neighborhood.of(2, **options), SIZE, query)
        axes.set_title(title, fontsize=10.5, color=INK)
    print(save_figure(figure, OUT, dpi=80))


if __name__ == "__main__":
    main()

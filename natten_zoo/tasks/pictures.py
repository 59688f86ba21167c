"""What masks have in common: the classes found, and pictures of them, tints and a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.labels import Color


def tint(image: np.ndarray, colors: np.ndarray, opacity: float | np.ndarray) -> np.ndarray:
    """An image under colors, `[H, W, 3]` of uint8.

    Args:
        image: `[H, W, 3]`, or gray `[H, W]`, of uint8.
        colors: `[H, W, 3]`.
        opacity: Of the colors, one or per pixel `[H, W]`, in 0..1.
    """
    below = (image if image.ndim == 3 else image[..., None]).astype(np.float32)
    opacity = opacity[..., None] if isinstance(opacity, np.ndarray) else opacity
    return (below + opacity * (colors.astype(np.float32) - below)).round().astype(np.uint8)


def classes_found(
    mask: np.ndarray,
    names: Sequence[str],
    colors: Sequence[Color],
    measure: Callable[[int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The classes of a mask, the largest first: class, index, color, what a count means, share."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    found = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [
        {
            "class": names[index],
            "index": index,
            "color": list(colors[index]),
            **measure(int(counts[index])),
            "share": round(float(counts[index] / mask.size), 6),
        }
        for index in found
    ]


def with_legend(picture: Image.Image, classes: Sequence[dict[str, Any]]) -> Image.Image:
    """A picture with a legend on its right; of nothing there is none."""
    if not classes:
        return picture
    key = legend(classes, picture.height)
    page = Image.new("RGB", (picture.width + key.width, picture.height), "white")
    page.paste(picture, (0, 0))
    page.paste(key, (picture.width, 0))
    return page


def legend(classes: Sequence[dict[str, Any]], height: int) -> Image.Image:
    """Colors, names and shares, the largest first, as many as fit."""
    text = min(max(height // 32, 9), 28)
    line, margin = round(text * 1.6), text // 2
    font = ImageFont.load_default(text)
    fitting = max(1, (height - 2 * margin) // line)
    rows = [(f"{entry['class']}  {entry['share']:.1%}", entry["color"]) for entry in classes]
    if len(rows) > fitting:
        rows = [*rows[: fitting - 1], (f"and {len(rows) - fitting + 1} more", None)]
    widest = max(math.ceil(font.getlength(label)) for label, _ in rows)
    image = Image.new("RGB", (line + 2 * margin + widest + margin, height), "white")
    draw = ImageDraw.Draw(image)
    for index, (label, color) in enumerate(rows):
        top = margin + index * line
        if color is not None:
            box = (margin, top, margin + text, top + text)
            draw.rectangle(box, fill=tuple(color), outline="#8a9099")
        draw.text((2 * margin + text, top + text / 2), label, "#22262b", font, "lm")
    return image

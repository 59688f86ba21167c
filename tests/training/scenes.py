"""Images with masks that are generated: what they show is a matter of color, or of texture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.runs import COLORS

TEXTURES = ("across", "down", "squares")


def quarters(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four fields of random size in three colors; the class is the color."""
    height, width = random.integers(28, 44, 2)
    rows, columns = (n // 4 + random.integers(n // 2) for n in (height, width))
    mask = np.zeros((height, width), np.uint8)
    for place in np.ndindex(2, 2):
        field = tuple(
            slice(cut, None) if far else slice(cut)
            for far, cut in zip(place, (rows, columns), strict=True)
        )
        mask[field] = random.integers(3)
    return np.array([*COLORS.values()])[mask], mask


def textures(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four fields of any two colors: across, down or in squares; the class is the pattern."""
    _, mask = quarters(random)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] // 2 % 2
    pattern = np.choose(mask, [y, x, (x + y) % 2])
    dark, light = random.integers(0, 100, 3), random.integers(156, 256, 3)
    return np.where(pattern[..., None], light, dark), mask


def write_scenes(folder: Path, make, counts: dict[str, int], classes=()) -> Path:
    """`images/PART/N.png` and `masks/PART/N.png`, noisy, and their classes' names."""
    random = np.random.default_rng(0)
    for part, count in counts.items():
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
        for index in range(count):
            pixels, mask = make(random)
            noisy = random.normal(pixels, 10).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "images" / part / f"{index}.png")
            Image.fromarray(mask).save(folder / "masks" / part / f"{index}.png")
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    return folder

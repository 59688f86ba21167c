"""What the tests of training runs share: tiny data, and runs as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from natten_zoo.training import Recipe

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
TINY = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3, "mlp_ratio": 1.0}
# Everything that draws or remembers: masks, mixing, augmentation, momentum, average.
RANDOM = {"drop_path": 0.3, "mixup": 0.4, "erase": 0.5, "jitter": 0.2, "ema_decay": 0.9}


def write_images(folder: Path, count: int, classes: dict[str, tuple[int, ...]] = COLORS) -> Path:
    """`count` noisy patches of one color per class, 20 x 24 pixels, as PNG."""
    rng = np.random.default_rng(0)
    for name, color in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(color, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def tiny_recipe(**options: Any) -> Recipe:
    """A few updates of a tiny model on `data`; nothing is fused, to save compile time."""
    values = {
        "model": "nat_mini",
        "model_args": TINY,
        "pretrained": False,
        "image_size": 16,
        "epochs": 2,
        "batch_size": 8,
        "val_fraction": 0.2,
        "warmup_epochs": 0.0,
        "lr": 5e-3,
        "workers": 2,
        "log_every": 1,
        "compile": "no",
    }
    return Recipe.from_dict({**values, **options})


def spawn(recipe: Recipe, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    """Starts `scripts/train.py` on a recipe in a process of its own."""
    path = Path(recipe.out).with_suffix(".yaml")
    path.write_text(recipe.to_yaml())
    command = [*prefix, sys.executable, str(ROOT / "scripts" / "train.py"), "-c", str(path)]
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

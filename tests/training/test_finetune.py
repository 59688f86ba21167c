"""Real fine-tunes: from clothes to handwritten digits, in a few dozen updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natten_zoo.training import Recipe, run

DIGITS = Path(__file__).resolve().parents[1] / "fixtures" / "training" / "digits.csv.gz"


@pytest.fixture(params=[(400, 200)])
def digits(request, tmp_path) -> Path:
    """Folders train/DIGIT and val/DIGIT with so many images."""
    pytest.importorskip("mlx.data", reason="no mlx-data: Linux on arm64, Python 3.14")
    folder, (train, val) = tmp_path / "digits", request.param
    rows = np.loadtxt(DIGITS, delimiter=",", dtype=int)[: train + val]
    for index, row in enumerate(rows):
        target = folder / ("train" if index < train else "val") / str(row[-1])
        target.mkdir(parents=True, exist_ok=True)
        pixels = (row[:-1].reshape(8, 8) * 255 // 16).astype(np.uint8)
        Image.fromarray(pixels).resize((28, 28), Image.Resampling.BILINEAR).save(
            target / f"{index}.png"
        )
    return folder


def accuracy(digits: Path, tmp_path: Path, name: str, **options) -> float:
    recipe = Recipe.load(
        name,
        {
            "data": str(digits),
            "model": "nat_pico_fashion",
            "out": str(tmp_path / f"{name}{len(options)}"),
            "epochs": 2,
            "batch_size": 8,
            "warmup_epochs": 0.5,
            "crop": "shift",
            "crop_padding": 1,
            "flip": False,
            "jitter": 0.0,
            "erase": 0.0,
            "drop_path": 0.0,
            **options,
        },
    )
    return run(recipe)["val_accuracy"]


@pytest.mark.parametrize("digits", [(160, 80)], indirect=True)
def test_a_few_updates_tell_digits_apart(digits, tmp_path):
    """One digit in ten would be right by chance."""
    assert accuracy(digits, tmp_path, "finetune", lr=5e-3, epochs=1) > 0.35


@pytest.mark.slow
def test_fine_tuning_beats_the_linear_probe_and_training_from_scratch(digits, tmp_path):
    full = accuracy(digits, tmp_path, "finetune", lr=1.5e-3)
    probe = accuracy(digits, tmp_path, "linear_probe")
    scratch = accuracy(digits, tmp_path, "finetune", lr=1.5e-3, layer_decay=1.0, pretrained=False)
    assert full > 0.7 and full > probe + 0.05 and full > scratch + 0.1

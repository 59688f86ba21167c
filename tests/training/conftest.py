"""Tiny data and tiny models: what is trained here is the machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natten_zoo.training import Recipe
from tests.training.runs import TINY, write_images


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder CLASS/* of three classes with ten images each."""
    pytest.importorskip("mlx.data", reason="no mlx-data: Linux on arm64, Python 3.14")
    return write_images(tmp_path_factory.mktemp("data") / "flowers", 10)


@pytest.fixture
def recipe(flowers: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes recipes of a few updates on the flowers; nothing is fused, to save compile time."""

    def make(**options: Any) -> Recipe:
        values = {
            "data": str(flowers),
            "model": "nat_mini",
            "model_args": TINY,
            "pretrained": False,
            "image_size": 16,
            "out": str(tmp_path / "run"),
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

    return make

"""Tiny data and tiny models: what is trained here is the machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natten_zoo.training import Recipe
from tests.training.runs import tiny_recipe, write_images


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder CLASS/* of three classes with ten images each."""
    pytest.importorskip("mlx.data", reason="no mlx-data: Linux on arm64, Python 3.14")
    return write_images(tmp_path_factory.mktemp("data") / "flowers", 10)


@pytest.fixture
def recipe(flowers: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes recipes of a few updates on the flowers."""

    def make(**options: Any) -> Recipe:
        return tiny_recipe(**{"data": str(flowers), "out": str(tmp_path / "run"), **options})

    return make

"""Small folders of images, no two of which are the same."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Flat:
    """Writes images of one flat color each below a folder."""

    def __init__(self, root):
        self.root, self.numbers = root, count()

    def __call__(self, folder, images, names="{}.png"):
        """Write some images; returns their paths."""
        paths = [self.root / folder / names.format(i) for i in range(images)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = next(self.numbers)
            color = np.array([shade % 256, shade // 256, 0], np.uint8)
            Image.fromarray(np.broadcast_to(color, (4, 4, 3)).copy()).save(path)
        return paths


@pytest.fixture
def flat(tmp_path: Path) -> Flat:
    """Makes images below `flat.root`."""
    return Flat(tmp_path / "data")

"""Write the sample images of the package: the first two of each class of Fashion-MNIST's test set.

    python scripts/make_samples.py

Nothing is picked by hand, so the samples are no easier than the rest. A file is named after its
label, its class and its position in the test set: 03_dress_00013.png.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from natten_zoo.data.fashion_mnist import CLASSES, fashion_mnist

SAMPLES = Path(__file__).parents[1] / "natten_zoo" / "assets" / "samples"
PER_CLASS = 2


def main() -> None:
    """Writes the images."""
    images, labels = fashion_mnist("test")
    for label, name in enumerate(CLASSES):
        for index in np.flatnonzero(labels == label)[:PER_CLASS]:
            slug = re.sub(r"\W+", "-", name.lower())
            path = SAMPLES / f"{label:02}_{slug}_{index:05}.png"
            Image.fromarray(images[index]).save(path, optimize=True)
            print(path.name)


if __name__ == "__main__":
    main()

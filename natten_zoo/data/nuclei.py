"""The small volume that the package stardist ships: synthetic cell nuclei, 31x61x57 voxels.

Fetch it with `pip download stardist --no-deps`; the wheel is read as it is. BSD-3-Clause.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

FILES = ("img3d.tif", "mask3d.tif")
FOLDER = "stardist/data/images"


def is_nuclei(path: Path) -> bool:
    """Whether a path is stardist's wheel, or a folder with the two files."""
    return path.suffix == ".whl" or all((path / name).is_file() for name in FILES)


def read_nuclei(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The image `[31, 61, 57, 1]`, float32, and the number of each voxel's nucleus, 0 for none.

    Args:
        path: The wheel, or a folder with `img3d.tif` and `mask3d.tif`.

    Raises:
        ValueError: The wheel has no such files, or they do not fit together.
    """
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                contents = [wheel.read(f"{FOLDER}/{name}") for name in FILES]
        else:
            contents = [(path / name).read_bytes() for name in FILES]
        image, mask = (_stack(content) for content in contents)
    except (KeyError, zipfile.BadZipFile, SyntaxError) as error:
        raise ValueError(f"[read_nuclei] {path} has no volume of stardist's: {error}") from error
    if image.shape != mask.shape:
        raise ValueError(f"[read_nuclei] {path}: image {image.shape}, mask {mask.shape}.")
    return image[..., None].astype(np.float32), mask.astype(np.int32)


def _stack(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)])

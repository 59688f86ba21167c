"""Fashion-MNIST as Debian packages it: 60,000 and 10,000 gray images of clothes, 28 x 28."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_PREFIX = {"train": "train", "test": "t10k"}
_TYPE_UINT8 = 8


def fashion_mnist(
    split: str = "test", folder: str | os.PathLike[str] = FOLDER
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split of Fashion-MNIST (https://arxiv.org/abs/1708.07747, MIT).

    Args:
        split: `train` (60,000 images) or `test` (10,000).
        folder: Where the four files lie, `idx*-ubyte.gz` or unpacked (browsers do so).

    Returns:
        Images `[N, 28, 28]` of uint8 and labels `[N]` of int64, an index into `CLASSES`.

    Raises:
        FileNotFoundError: If the data set is not installed.
        ValueError: If a file is damaged.
    """
    if split not in _PREFIX:
        raise ValueError(f"[fashion_mnist] 'split' must be 'train' or 'test' but got '{split}'.")
    images, labels = (
        read_idx(_found(Path(folder), f"{_PREFIX[split]}-{kind}-ubyte"))
        for kind in ("images-idx3", "labels-idx1")
    )
    if len(images) != len(labels):
        raise ValueError(
            f"[fashion_mnist] {folder} holds {len(images)} images but {len(labels)} labels."
        )
    return images, labels.astype(np.int64)


def is_idx_folder(path: str | os.PathLike[str], split: str = "train") -> bool:
    """Whether a folder holds a split as IDX files, the form in which the data is published."""
    return _found(Path(path), f"{_PREFIX[split]}-images-idx3-ubyte").exists()


def _found(folder: Path, name: str) -> Path:
    """The unpacked file if it is there, else the gzipped one."""
    return folder / name if (folder / name).exists() else folder / f"{name}.gz"


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of bytes, gzipped or not: `0 0 type rank`, big-endian sizes, the data."""
    if not path.exists():
        raise FileNotFoundError(
            f"[fashion_mnist] {path} does not exist. On Debian and Ubuntu "
            "`apt install dataset-fashion-mnist` brings it; elsewhere download the four files that "
            "https://github.com/zalandoresearch/fashion-mnist names and give their folder."
        )
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"[fashion_mnist] {path} is damaged: {error}.") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _TYPE_UINT8]):
        raise ValueError(f"[fashion_mnist] {path} is not an IDX file of bytes.")
    data = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:data], dtype=">u4").astype(np.int64)
    if len(content) - data != shape.prod():
        raise ValueError(
            f"[fashion_mnist] {path} is damaged: {len(content) - data} bytes for {shape.tolist()}."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=data).reshape(shape)

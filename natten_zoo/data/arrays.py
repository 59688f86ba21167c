"""A data set that fits in memory: all images on the device, batches by gathering rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from . import fashion_mnist
from .preprocess import Preprocess

Batch = tuple[mx.array, mx.array, mx.array]


class ArraySource:
    """Training and validation images in memory.

    Args:
        train: Images `[N, S, S, C]` of uint8 at the network's input size, and labels `[N]`.
        val: The same for validation.
        classes: Name of every class.
    """

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        val: tuple[np.ndarray, np.ndarray],
        classes: tuple[str, ...],
    ) -> None:
        self.classes, self.size, self.val_size = classes, len(train[1]), len(val[1])
        self._train = mx.array(train[0]), mx.array(train[1].astype(np.int32))
        self._val = val[0], val[1].astype(np.int32)

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch of images, labels and aspect ratios for each array of row numbers."""
        images, labels = self._train
        for chosen in rows:
            index = mx.array(chosen)
            yield images[index], labels[index], mx.ones((len(chosen),))

    def val_batches(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """The validation images of one process; the last batch is padded, label -1."""
        images, labels = self._val[0][rank::world], self._val[1][rank::world]
        for start in range(0, len(labels), batch_size):
            yield pad_batch(
                images[start : start + batch_size], labels[start : start + batch_size], batch_size
            )


def pad_batch(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[mx.array, mx.array]:
    """Fill a batch up to `size` with black images of label -1."""
    missing = size - len(labels)
    images = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
    return mx.array(images), mx.array(np.pad(labels, (0, missing), constant_values=-1))


def fashion_mnist_source(
    preprocess: Preprocess, folder: str | os.PathLike[str] = fashion_mnist.FOLDER
) -> ArraySource:
    """Fashion-MNIST: its 60,000 training images, validated on its 10,000 test images."""
    splits = [fashion_mnist.fashion_mnist(split, folder) for split in ("train", "test")]
    train, val = ((fit_images(images, preprocess), labels) for images, labels in splits)
    return ArraySource(train, val, fashion_mnist.CLASSES)


def fit_images(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Bring grey images `[N, H, W]` to the model's size and channels, as at inference."""
    side = preprocess.size
    if images.shape[1:] != (side, side):
        images = np.stack([np.asarray(preprocess.crop(Image.fromarray(i))) for i in images])
    return np.repeat(images[..., None], preprocess.channels, axis=-1)


def is_idx_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds gzipped IDX files, the form in which Fashion-MNIST is published."""
    return Path(path, "train-images-idx3-ubyte.gz").exists()

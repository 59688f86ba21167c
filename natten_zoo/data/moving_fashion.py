"""Moving-Fashion-MNIST: generated clips of clothes that move in one of eight directions.

A class is a kind of clothes and a direction. What leaves the frame on one side comes in on the
other, and starts are uniform, so that no frame tells the direction. Played backwards, a clip is as
likely a clip of the opposite direction: a model that looks at frames in no order is right about
the direction half of the time at best.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import mlx.core as mx
import numpy as np

from . import fashion_mnist
from .arrays import Batch, digests, pad_batch
from .preprocess import Preprocess

# Steps down and right from one frame to the next.
DIRECTIONS = {
    "right": (0, 1),
    "down right": (1, 1),
    "down": (1, 0),
    "down left": (1, -1),
    "left": (0, -1),
    "up left": (-1, -1),
    "up": (-1, 0),
    "up right": (-1, 1),
}
CLASSES = tuple(f"{name}, {where}" for name in fashion_mnist.CLASSES for where in DIRECTIONS)
SPEEDS = (1, 2, 3)
FRAMES = 8
_SPLITS = ("train", "test")


class MovingFashion:
    """Clips of a split of Fashion-MNIST; clip i shows image i.

    Direction, speed (1 to 3 pixels per frame) and start of clip i depend on seed, split and i
    alone, so the same clips are generated everywhere.

    Args:
        split: `train` (60,000 clips) or `test` (10,000).
        size: Side of the frames, 28 or more.
        frames: Frames of a clip.
        seed: Of directions, speeds and starts.
        folder: Where Fashion-MNIST's files lie.

    Attributes:
        labels: Index into `CLASSES` of each clip.

    Raises:
        FileNotFoundError: Fashion-MNIST is not installed.
        ValueError: The split is unknown, or frames are smaller than the clothes.
    """

    def __init__(
        self,
        split: str = "test",
        *,
        size: int = 32,
        frames: int = FRAMES,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        images, clothes = fashion_mnist.fashion_mnist(split, folder or fashion_mnist.FOLDER)
        if size < images.shape[1] or frames < 1:
            raise ValueError(
                f"[MovingFashion] 'size' must be {images.shape[1]} or more and 'frames' positive "
                f"but got {size} and {frames}."
            )
        self.size, self._images = size, images
        draws = np.random.default_rng([seed, _SPLITS.index(split)]).random((len(images), 4))
        direction, speed = (draws[:, :2] * (len(DIRECTIONS), len(SPEEDS))).astype(int).T
        self.labels = clothes * len(DIRECTIONS) + direction
        step = np.array(list(DIRECTIONS.values()))[direction] * np.take(SPEEDS, speed)[:, None]
        start = (draws[:, 2:] * size).astype(int)  # [N, 2]: top, left
        self._corners = start[:, None] + step[:, None] * np.arange(frames)[:, None]  # [N, T, 2]

    @property
    def content(self) -> tuple[np.ndarray, np.ndarray]:
        """All that the clips are made from: the images, and where each is in every frame."""
        return self._images, self._corners

    def __len__(self) -> int:
        return len(self.labels)

    def clips(self, indices: np.ndarray) -> np.ndarray:
        """Some clips, `[N, frames, size, size]` of uint8."""
        images, size = self._images[indices], self.size
        missing = size - images.shape[1]
        torus = np.pad(images, [(0, 0), (0, missing), (0, missing)])
        # Moving the image by n is looking at an endless repetition of it from -n on.
        tiled = np.tile(torus, (1, 2, 2))
        windows = np.lib.stride_tricks.sliding_window_view(tiled, (size, size), axis=(1, 2))
        top, left = np.moveaxis(-self._corners[indices] % size, -1, 0)
        return windows[np.arange(len(images))[:, None], top, left]


class MovingFashionSource:
    """Moving-Fashion-MNIST as the trainer takes it: its test clips are for validation.

    Args:
        preprocess: Size and channels of the frames.
        frames: Frames of a clip.
    """

    classes = CLASSES

    def __init__(self, preprocess: Preprocess, frames: int = FRAMES) -> None:
        self._train, self._val = (
            MovingFashion(split, size=preprocess.size, frames=frames) for split in _SPLITS
        )
        self._channels = preprocess.channels
        self.size, self.val_size = len(self._train), len(self._val)
        self.fingerprint = digests(train=self._train.content, val=self._val.content)

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Clips `[B, T, S, S, C]`, labels and aspect ratios for each array of row numbers."""
        for chosen in rows:
            labels = mx.array(self._train.labels[chosen].astype(np.int32))
            yield mx.array(self._read(self._train, chosen)), labels, mx.ones((len(chosen),))

    def val_batches(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """The validation clips of one process; the last batch is padded, label -1."""
        own = np.arange(rank, self.val_size, world)
        for start in range(0, len(own), batch_size):
            chosen = own[start : start + batch_size]
            labels = self._val.labels[chosen].astype(np.int32)
            yield pad_batch(self._read(self._val, chosen), labels, batch_size)

    def _read(self, data: MovingFashion, indices: np.ndarray) -> np.ndarray:
        return np.repeat(data.clips(indices)[..., None], self._channels, axis=-1)

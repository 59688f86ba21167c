"""Many image files: finding them, and reading them in batches while the model works."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from .listing import images_in, is_system
from .reading import ImageError, ImageSource


@dataclass
class ImageBatch:
    """Images that go through a model together, and the files that could not be read.

    Attributes:
        indices: Position of each image in the list that was asked for.
        images: `[len(indices), size, size, channels]` in float32.
        failures: Message of every unreadable file, by position.
    """

    indices: list[int]
    images: mx.array
    failures: dict[int, str] = field(default_factory=dict)


class Prepares(Protocol):
    """What makes a model's input of a source, such as [`natten_zoo.data.Preprocess`][]."""

    def to_numpy(self, source: Any, /) -> np.ndarray:
        """The input without its batch axis, in float32."""


def find_images(patterns: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the image files that files, folders and glob patterns name.

    Folders are searched to any depth, in the order of their names, for known image suffixes;
    hidden files and what only systems leave are passed over. A file that is named is listed
    whatever its suffix. What names nothing (a missing file, a folder without images, a pattern
    without a match) is listed itself, so that reading it fails among the others. No
    file is listed twice.
    """
    found: dict[Path, None] = {}
    for path in map(Path, patterns):
        files = []
        if path.is_dir():
            files = images_in(path)
        elif glob.has_magic(str(path)) and not path.exists():
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            files = [p for p in matches if not p.is_dir() and not _is_left(p, path)]
        found.update(dict.fromkeys(files or [path]))
    return list(found)


def _is_left(match: Path, pattern: Path) -> bool:
    """Whether a pattern, which does not say so, matches what only systems leave."""
    return any(is_system(part) and part not in pattern.parts for part in match.parts)


def read_batches(
    sources: Sequence[ImageSource],
    preprocess: Prepares,
    batch_size: int,
    workers: int = 4,
) -> Iterator[ImageBatch]:
    """Reads images in their order, one batch ahead of the one that is being used.

    A source that cannot be read takes no place in `images`; its message is in `failures`.
    """
    if batch_size < 1:
        raise ValueError(f"[read_batches] 'batch_size' must be positive but got {batch_size}.")
    starts = range(0, len(sources), batch_size)
    with ThreadPoolExecutor(workers) as pool:

        def submit(start: int) -> list[Future[np.ndarray]]:
            chosen = sources[start : start + batch_size]
            return [pool.submit(preprocess.to_numpy, source) for source in chosen]

        ahead = submit(0)
        for start in starts:
            futures, ahead = ahead, submit(start + batch_size)
            yield _collect(futures, start)


def _collect(futures: list[Future[np.ndarray]], start: int) -> ImageBatch:
    arrays: dict[int, np.ndarray] = {}
    failures: dict[int, str] = {}
    for index, future in enumerate(futures, start):
        try:
            arrays[index] = future.result()
        except ImageError as error:
            failures[index] = str(error)
    images = mx.array(np.stack(list(arrays.values()))) if arrays else mx.zeros((0,))
    return ImageBatch(list(arrays), images, failures)

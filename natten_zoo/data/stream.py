"""A data set of image files, decoded by mlx-data's threads in an order that can be resumed.

Everything random happens later, on the device: here a row number always gives the same pixels,
so an interrupted epoch goes on where it stopped. mlx-data's own random operations would repeat
themselves between threads and epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files import write_whole
from .arrays import Batch, pad_batch
from .labeled import LabeledImages
from .preprocess import Preprocess
from .reading import REDUCED, look_at_all, open_image, read_image

ORIENTATION = 0x0112
MARGIN = 8 / 7  # a random crop is cut from an image that is larger than the network's input
LUMA = (19595, 38470, 7471)  # of 65536, as Pillow rounds them


@dataclass(frozen=True)
class Scan:
    """What a look into one file found: which file to decode instead, and its width / height."""

    file: Path
    aspect: float


def scan_images(files: list[Path], converted: Path, workers: int) -> list[Scan]:
    """Decodes every image once, before training, and converts what mlx-data would read wrongly.

    mlx-data cannot read WebP or TIFF, ignores the EXIF orientation and transparency, gives gray
    PNG files another shape and decodes any JPEG at its full size. Such files are stored as
    `read_image` reads them in the folder `converted` and read from there; those that are there
    already, of the same path, size and time, are used again, and others go.

    Raises:
        ImageError: Naming every file that no one can read.
    """
    complaint = "images can't be read; repair or remove them"
    scans = look_at_all(lambda file: _scan(file, converted), files, complaint, workers)
    wanted = {scan.file for scan in scans}
    for path in converted.iterdir() if converted.is_dir() else ():
        if path not in wanted:
            path.unlink(missing_ok=True)
    return scans


def _scan(file: Path, converted: Path) -> Scan:
    state = file.stat()
    key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
    target = converted / f"{sha256(key.encode()).hexdigest()[:24]}.png"
    if target.exists():  # whole, or it would not be there
        with open_image(target) as header:
            return Scan(target, header.width / header.height)
    image = read_image(file)  # decodes all of it, so a truncated file is found
    aspect = image.width / image.height
    with open_image(file) as header:
        plain = header.format in ("JPEG", "PNG", "BMP") and header.mode == "RGB"
        plain = plain and not header.has_transparency_data and REDUCED not in header.info
        if plain and header.getexif().get(ORIENTATION, 1) == 1:
            return Scan(file, aspect)
    # Several processes may convert it at once.
    write_whole(target, lambda file: image.save(file, "PNG"))
    return Scan(target, aspect)


class StreamSource:
    """Training images through mlx-data, validation images as at inference.

    Args:
        images: Files and labels.
        preprocess: Size and channels of the network's input.
        crop: The recipe's crop: `resized` takes whole images squeezed to a square, a little
            larger than the input; others take the center at the input's size.
        converted: Folder for files that have to be converted.
        workers: Threads.
    """

    def __init__(
        self,
        images: LabeledImages,
        preprocess: Preprocess,
        crop: str,
        converted: Path,
        workers: int,
    ) -> None:
        self.classes, self.val, self.fingerprint = images.classes, images.val, images.fingerprint
        self.size, self.val_size = len(images.train.files), len(images.val.files)
        self.preprocess, self.crop, self.workers = preprocess, crop, workers
        scans = scan_images(images.train.files + images.val.files, converted, workers)
        self.rows = [
            {
                "image": str(scan.file).encode(),
                "label": np.array(label, np.int32),
                "aspect": np.array(scan.aspect, np.float32),
            }
            for scan, label in zip(scans, images.train.labels, strict=False)
        ]

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch of images, labels and aspect ratios for each array of row numbers."""
        try:
            import mlx.data as dx
        except ImportError as error:
            raise ImportError(
                "[data] training on image files needs mlx-data: `pip install mlx-data` (Python "
                "3.13 or older, macOS or Linux x86-64)."
            ) from error
        chosen = list(rows)
        if not chosen:
            return
        files: Any = dx
        buffer = files.buffer_from_vector([self.rows[row] for row in np.concatenate(chosen)])
        buffer = self._resize(buffer.load_image("image"))
        # Batching before the prefetch keeps the order and gives every batch the same shape.
        for batch in buffer.batch(len(chosen[0])).ordered_prefetch(4, self.workers):
            images = to_channels(mx.array(batch["image"]), self.preprocess.channels)
            aspect = mx.array(batch["aspect"]) if self.crop == "resized" else mx.ones(len(images))
            yield images, mx.array(batch["label"]), aspect

    def _resize(self, buffer: Any) -> Any:
        size = self.preprocess.size
        if self.crop == "resized":
            return buffer.image_resize("image", round(size * MARGIN), round(size * MARGIN))
        buffer = buffer.image_resize_smallest_side("image", self.preprocess.short_side)
        return buffer.image_center_crop("image", size, size)

    def val_batches(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """The validation images of one process; the last batch is padded, label -1."""
        files = self.val.files[rank::world]
        labels = np.array(self.val.labels[rank::world], dtype=np.int32)
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(files), batch_size):
                chosen = files[start : start + batch_size]
                pixels = np.stack(list(pool.map(self._val_image, chosen)))
                yield pad_batch(pixels, labels[start : start + batch_size], batch_size)

    def _val_image(self, file: Path) -> np.ndarray:
        image = self.preprocess.crop(read_image(file, self.preprocess.channels))
        side = self.preprocess.size
        return np.asarray(image).reshape(side, side, self.preprocess.channels)


def to_channels(images: mx.array, channels: int) -> mx.array:
    """RGB `[B, H, W, 3]` of uint8, or its gray `[B, H, W, 1]` with Pillow's rounding."""
    if channels == 3:
        return images
    luma = (images.astype(mx.int32) * mx.array(LUMA)).sum(-1, keepdims=True)
    return ((luma + 0x8000) >> 16).astype(mx.uint8)

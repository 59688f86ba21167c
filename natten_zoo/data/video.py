"""Reading videos: only the frames that are wanted, whatever the file's length."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from .listing import why_no_file
from .reading import upright

# What Pillow reads with its frames; everything else needs PyAV, the extra `video`.
ANIMATIONS = {".gif", ".webp", ".png", ".apng", ".tif", ".tiff"}
VideoSource = str | os.PathLike[str]


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""


def count_frames(path: VideoSource) -> int:
    """The number of frames of a video, found without decoding them.

    Raises:
        VideoError: There is no such file, or it is no video.
        ImportError: Reading it needs PyAV, which is not installed.
    """
    path = Path(path)
    with _reporting(path):
        if _is_animation(path):
            with Image.open(path) as image:
                return getattr(image, "n_frames", 1)
        with _open(path) as container:
            # Containers may not know, or may be wrong; their packets are there to be counted.
            return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def read_frames(path: VideoSource, indices: Collection[int]) -> dict[int, Image.Image]:
    """Some frames of a video, in RGB.

    Args:
        path: A file that FFmpeg reads (with the extra `video`), or an animated GIF, WebP or PNG.
        indices: Which frames, from 0.

    Returns:
        Those of them that there are: a damaged file may have fewer frames than it says.

    Raises:
        VideoError: The file cannot be read.
        ImportError: Reading it needs PyAV, which is not installed.
    """
    path, wanted = Path(path), set(indices)
    with _reporting(path):
        decoded = islice(_decode(path), max(wanted, default=-1) + 1)
        frames = {i: _image(frame) for i, frame in enumerate(decoded) if i in wanted}
    if wanted and not frames:
        raise VideoError(f"[read_frames] {path}: no frame of it could be decoded.")
    return frames


def _decode(path: Path) -> Iterator[Any]:
    if _is_animation(path):
        with Image.open(path) as image:
            yield from ImageSequence.Iterator(image)
    else:
        with _open(path) as container:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)


def _image(frame: Any) -> Image.Image:
    """A frame as an upright image of its own: decoders reuse theirs."""
    if isinstance(frame, Image.Image):
        return upright(frame.copy())
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return image if matrix is None else displayed(image, np.frombuffer(bytes(matrix), np.int32))


def displayed(image: Image.Image, matrix: np.ndarray) -> Image.Image:
    """An image as a display matrix says: phones write how they were held, mirrors included.

    Args:
        image: As it is stored.
        matrix: `a b u c d v x y w`; a pixel right is `(a, b)` on the display, one down
            `(c, d)`. Only its turn and whether it mirrors count.

    Examples:
        >>> displayed(Image.new("L", (4, 2)), np.array([0, 1, 0, -1, 0, 0, 0, 0, 1])).size
        (2, 4)
    """
    a, b, _, c, d = (float(value) for value in matrix[:5])
    if a * d - b * c < 0:  # mirrored, then turned by what is left
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        a, b = -a, -b
    return image.rotate(-math.degrees(math.atan2(b, a)), expand=True)


def _is_animation(path: Path) -> bool:
    return path.suffix.lower() in ANIMATIONS


def _open(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install 'natten-zoo[video]'") from error
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise VideoError("it has sound only.")
    return container


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Any failure of a reader is the file's, except that a reader is missing."""
    try:
        # Pillow would wait for a pipe's writer, FFmpeg would try a path as an address.
        if kind := why_no_file(path):
            raise VideoError(f"{kind}, not a video.")
        yield
    except ImportError:
        raise
    except VideoError as error:
        raise VideoError(f"[read_frames] {path}: {error}") from None
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"no video ({error})"
        raise VideoError(f"[read_frames] {path}: {reason}.") from error

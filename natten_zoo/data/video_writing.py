"""Writing videos: files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..files import write_whole

# What FFmpeg calls the format of a file, by its ending.
FORMATS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska"}
# What Pillow writes.
PICTURES = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
# Of x264: from 0, nothing lost, to 51. 18 is near what nobody tells from the original.
QUALITY = 18


def check_video_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name whose ending is no format's, or of one that needs what is not installed.

    Raises:
        ValueError: The ending is unknown.
        ImportError: PyAV is missing.
    """
    ending = Path(path).suffix.lower()
    if ending not in (*FORMATS, *PICTURES):
        known = ", ".join((*FORMATS, *PICTURES))
        raise ValueError(f"[write_video] 'path' must end in one of {known} but got {path}.")
    if ending in FORMATS:
        _av()


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float = 24) -> Path:
    """Write frames as a video, or as an animated picture.

    Args:
        path: `.mp4`, `.mov`, `.m4v` or `.mkv`, in H.264 by PyAV (the extra `video`);
            `.gif`, `.png` or `.webp` by Pillow, the last two without loss.
        frames: `[frames, height, width, 3]` of uint8; of even sides for H.264.
        fps: Frames per second.

    Returns:
        The path.

    Raises:
        ValueError: Frames, their rate or the ending are others.
        ImportError: PyAV is missing.
        OSError: The file can't be written.

    Examples:
        >>> import tempfile
        >>> frames = np.zeros((3, 4, 6, 3), np.uint8)
        >>> write_video(f"{tempfile.mkdtemp()}/black.gif", frames, fps=10).name
        'black.gif'
    """
    check_video_name(path)
    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            "[write_video] 'frames' must be uint8 [frames, height, width, 3] but got "
            f"{frames.dtype} {list(frames.shape)}."
        )
    if not 0 < fps <= 1000:
        raise ValueError(f"[write_video] 'fps' must be a number in 0..1000 but got {fps}.")
    if path.suffix.lower() in PICTURES:
        return write_whole(path, lambda file: _draw(file, path, frames, fps))
    if any(side % 2 for side in frames.shape[1:3]):
        raise ValueError(
            f"[write_video] 'frames' must have even sides for H.264 but got {frames.shape[1:3]}."
        )
    return write_whole(path, lambda file: _encode(file, path, frames, fps))


def _draw(file: IO[bytes], path: Path, frames: np.ndarray, fps: float) -> None:
    first, *others = map(Image.fromarray, frames)
    options: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    kind = PICTURES[path.suffix.lower()]
    duration = 1000 / fps if kind == "PNG" else round(1000 / fps)
    first.save(
        file, kind, save_all=True, append_images=others, duration=duration, loop=0, **options
    )


def _encode(file: IO[bytes], path: Path, frames: np.ndarray, fps: float) -> None:
    from fractions import Fraction

    av = _av()
    with av.open(file, "w", format=FORMATS[path.suffix.lower()]) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(QUALITY)}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("writing videos needs PyAV: pip install 'natten-zoo[video]'") from error
    return av

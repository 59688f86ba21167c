"""Which frames and which parts of them a video classifier looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .preprocess import Preprocess


def clip_indices(count: int, frames: int = 32, stride: int = 2, clips: int = 4) -> np.ndarray:
    """Frames of clips that are spread evenly over a video.

    A video shorter than a clip is played again from its start.

    Args:
        count: Frames of the video.
        frames: Frames of a clip.
        stride: From one frame of a clip to the next.
        clips: Number of clips, each in the middle of its share of the possible starts.

    Returns:
        `[clips, frames]`.

    Raises:
        ValueError: A number is not positive.

    Examples:
        >>> clip_indices(10, frames=3, stride=2, clips=2).tolist()
        [[1, 3, 5], [4, 6, 8]]
    """
    numbers = {"count": count, "frames": frames, "stride": stride, "clips": clips}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"[clip_indices] '{name}' must be positive but got {value}.")
    starts = max(count - (frames - 1) * stride, 1)
    first = ((np.arange(clips) + 0.5) * starts / clips).astype(int)
    return (first[:, None] + stride * np.arange(frames)) % count


def crop_clip(images: Sequence[Image.Image], prepare: Preprocess, crops: int = 3) -> np.ndarray:
    """Squares of a clip, side by side along its longer side, as the model takes them.

    The short side is resized to the model's input size.

    Args:
        images: Frames of the same size.
        prepare: The model's input size, filter, mean and standard deviation.
        crops: 1 for the middle only, else from one end to the other.

    Returns:
        `[crops, frames, size, size, channels]` in float32.

    Raises:
        ValueError: There is no frame, or `crops` is not positive.
    """
    if not images or crops < 1:
        raise ValueError(
            "[crop_clip] 'images' must not be empty and 'crops' must be positive but got "
            f"{len(images)} images and {crops}."
        )
    side, (width, height) = prepare.size, images[0].size
    scale = side / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    mode = "RGB" if prepare.channels == 3 else "L"
    frames = [
        prepare.normalize(np.asarray(image.convert(mode).resize(size, prepare.resample)))
        for image in images
    ]
    parts = np.linspace(0, 1, crops) if crops > 1 else [0.5]
    corners = [[round(part * (n - side)) for n in size] for part in parts]
    return np.stack(
        [
            np.stack([frame[top : top + side, left : left + side] for frame in frames])
            for left, top in corners
        ]
    )

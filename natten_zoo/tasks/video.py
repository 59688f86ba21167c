"""Classifying videos by several clips and crops of each."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..data import Preprocess
from ..data.clips import clip_indices, crop_clip
from ..data.finite import check_finite
from ..data.video import VideoSource, count_frames, read_frames
from ..models.nat3d import NAT3D


def classify_video(
    model: NAT3D,
    video: VideoSource,
    *,
    frames: int | None = None,
    stride: int = 2,
    clips: int = 4,
    crops: int = 3,
) -> np.ndarray:
    """The probability of each class, averaged over views of a video.

    4 clips by 3 crops is the usual test of Video Swin and others. Of the video only the frames that
    are looked at are held, one clip at a time.

    Args:
        model: The model, in evaluation mode.
        video: A file; see [`natten_zoo.data.video.read_frames`][].
        frames: Frames of a clip. Default: the model's record's, else 32.
        stride: From one frame of a clip to the next.
        clips: Clips per video, spread evenly.
        crops: Squares per clip, side by side.

    Returns:
        `[classes]`, summing to 1.

    Raises:
        VideoError: The file cannot be read.
        ImportError: Reading it needs PyAV, which is not installed.
        ValueError: A number is not positive.
    """
    total = np.zeros(model.config.num_classes)
    for clip in view_video(model, video, frames=frames, stride=stride, clips=clips, crops=crops):
        for view in clip:
            logits = model(mx.array(view)[None])[0].astype(mx.float32)
            total += np.array(mx.softmax(logits))
    check_finite("classify_video", "probabilities", total)
    return total / (clips * crops)


def view_video(
    model: NAT3D,
    video: VideoSource,
    *,
    frames: int | None = None,
    stride: int = 2,
    clips: int = 4,
    crops: int = 3,
) -> Iterator[np.ndarray]:
    """What [`classify_video`][] looks at, `[crops, frames, S, S, C]` for each clip."""
    record = model.record
    prepare = Preprocess(crop_pct=1.0) if record is None else Preprocess.from_record(record)
    if frames is None:
        frames = (record and record.frames) or 32
    for indices in clip_indices(count_frames(video), frames, stride, clips):
        found = read_frames(video, indices.tolist())
        # What a damaged file lacks at its end is replaced by the last frame before it.
        present = np.array(sorted(found))
        nearest = present[np.maximum(np.searchsorted(present, indices, side="right") - 1, 0)]
        yield crop_clip([found[int(index)] for index in nearest], prepare, crops)

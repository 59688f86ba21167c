"""Videos that are written can be read again; what is none is refused, and nothing is left."""

import numpy as np
import pytest

from natten_zoo.data import write_video
from natten_zoo.data.video import count_frames, read_frames

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).repeat(8, 1).repeat(8, 2)
FRAMES = FRAMES.astype(np.uint8)


@pytest.mark.parametrize("ending", ["mp4", "mov", "m4v", "mkv", "gif", "png", "webp"])
def test_what_is_written_is_read(tmp_path, ending):
    if ending not in ("gif", "png", "webp"):
        pytest.importorskip("av")
    path = write_video(tmp_path / f"clip.{ending}", FRAMES, fps=25)
    assert count_frames(path) == 5 and [p.name for p in tmp_path.iterdir()] == [path.name]
    for index, image in read_frames(path, range(5)).items():
        image = np.array(image.convert("RGB")).astype(int)
        assert image.shape == FRAMES[index].shape
        exact = ending in ("png", "webp")
        assert np.abs(image - FRAMES[index]).mean() <= (0 if exact else 40)


@pytest.mark.parametrize(
    ("frames", "fps", "name", "message"),
    [
        (FRAMES[0], 24, "x.gif", r"must be uint8 \[frames, height, width, 3\] but got uint8 \[32,"),
        (FRAMES / 255, 24, "x.gif", "must be uint8 .* but got float64"),
        (FRAMES[:0], 24, "x.gif", "must be uint8"),
        (FRAMES, 0, "x.gif", r"'fps' must be a number in 0\.\.1000 but got 0"),
        (FRAMES, float("nan"), "x.gif", "'fps' must be a number"),
        (FRAMES, 24, "x.avi", r"must end in one of \.mp4, "),
        (FRAMES[:, :31], 24, "x.mp4", r"must have even sides for H\.264 but got \(31, 48\)"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, frames, fps, name, message):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    pytest.importorskip("av")
    path = write_video(tmp_path / "clip.mp4", FRAMES)
    before = path.read_bytes()

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("natten_zoo.data.video_writing._encode", fails)
    with pytest.raises(OSError, match="No space left"):
        write_video(path, FRAMES)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]

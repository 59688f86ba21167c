"""Reading videos, choosing clips and crops, and `natten-zoo classify-video`."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.data import Preprocess
from natten_zoo.data.clips import clip_indices, crop_clip
from natten_zoo.data.fashion_mnist import CLASSES
from natten_zoo.data.video import VideoError, _image, count_frames, read_frames
from natten_zoo.models import NAT, inflate
from natten_zoo.tasks.video import classify_video, view_video

FILM = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def frames(colors, size=(40, 24)):
    return [Image.new("RGB", size, color) for color in colors]


@pytest.fixture
def gif(tmp_path):
    path = tmp_path / "clip.gif"
    shades = [(8 * i, 0, 255 - 8 * i) for i in range(20)]
    first, *rest = frames(shades)
    first.save(path, save_all=True, append_images=rest, duration=40)
    return path


@pytest.fixture
def avi(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(30):
            image = Image.new("RGB", (64, 48), (8 * index, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


def test_reading_an_animation(gif):
    assert count_frames(gif) == 20
    found = read_frames(gif, [7, 0, 19, 25])
    assert sorted(found) == [0, 7, 19]
    assert np.abs(np.array(found[7])[0, 0].astype(int) - (56, 0, 199)).max() <= 8


def test_reading_a_video(avi):
    assert count_frames(avi) == 30
    found = read_frames(avi, [0, 15, 29])
    reds = [np.asarray(found[i])[..., 0].mean() for i in (0, 15, 29)]
    assert (
        found[0].size == (64, 48) and np.abs(np.subtract(reds, (0, 120, 232))).max() < 12
    )  # it is lossy


def test_videos_are_turned_upright():
    class Frame:
        def __init__(self):
            self.side_data = {"DISPLAYMATRIX": np.array([0, -1, 0, 1, 0, 0, 0, 0, 1], np.int32)}

        def to_image(self):
            return Image.new("RGB", (40, 24), RED)

    assert _image(Frame()).size == (24, 40)


def test_what_cannot_be_read(tmp_path, avi, monkeypatch):
    text = tmp_path / "notes.mp4"
    text.write_text("no video at all")
    for path, reason in (
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path / "none.gif", "no such file"),
        (tmp_path, "a folder"),
        (text, "no video"),
    ):
        for read in (count_frames, lambda path: read_frames(path, [0])):
            with pytest.raises(VideoError, match=reason):
                read(path)
    with pytest.raises(VideoError, match="no frame of it could be decoded"):
        read_frames(avi, [99])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'natten-zoo\[video\]'"):
        count_frames(avi)


def test_clips_are_spread_evenly():
    assert clip_indices(63, 32, 2, 1).tolist() == [[*range(0, 63, 2)]]
    indices = clip_indices(300, 32, 2, 4)
    assert indices.shape == (4, 32) and indices.min() >= 0 and indices.max() < 300
    assert (np.diff(indices, axis=1) == 2).all()
    gaps = [indices[0, 0], *np.diff(indices[:, 0]), 300 - 1 - indices[-1, -1]]
    assert gaps == [29, 60, 59, 60, 29]
    assert clip_indices(3, 5, 1, 1).tolist() == [[0, 1, 2, 0, 1]]
    with pytest.raises(ValueError, match="'stride' must be positive but got 0"):
        clip_indices(3, stride=0)


def test_crops_go_from_one_end_to_the_other():
    image = Image.fromarray(np.arange(60, dtype=np.uint8)[None].repeat(20, 0))
    prepare = Preprocess(size=20, mean=(0.0,), std=(1 / 255,))
    views = crop_clip([image, image], prepare, 3)
    assert views.shape == (3, 2, 20, 20, 1)
    np.testing.assert_allclose(views[:, 0, 0, 0, 0], [0, 20, 40], atol=1e-3)
    tall = crop_clip([image.transpose(Image.Transpose.TRANSPOSE)], prepare, 3)
    np.testing.assert_allclose(tall[:, 0, 0, 0, 0], [0, 20, 40], atol=1e-3)
    assert crop_clip([image], prepare, 1)[0, 0, 0, 0, 0] == pytest.approx(20, abs=1e-3)
    with pytest.raises(ValueError, match="'images' must not be empty"):
        crop_clip([], prepare)


def test_probabilities_are_the_mean_over_views(tiny, gif):
    model = inflate(NAT.from_pretrained(tiny))
    arguments = {"frames": 6, "stride": 2, "clips": 2, "crops": 3}
    views = list(view_video(model, gif, **arguments))
    assert [view.shape for view in views] == [(3, 6, 16, 16, 3)] * 2
    expected = mx.softmax(model(mx.array(np.concatenate(views))), axis=-1).mean(axis=0)
    np.testing.assert_allclose(classify_video(model, gif, **arguments), expected, atol=1e-6)


def test_no_frames_are_an_error_and_no_default(tiny, gif):
    with pytest.raises(ValueError, match="'frames' must be positive but got 0"):
        classify_video(inflate(NAT.from_pretrained(tiny)), gif, frames=0)


def test_lacking_frames_are_replaced_by_the_last(tiny, gif, monkeypatch):
    model = inflate(NAT.from_pretrained(tiny))
    monkeypatch.setattr("natten_zoo.tasks.video.count_frames", lambda path: 24)
    (view,) = view_video(model, gif, frames=24, stride=1, clips=1, crops=1)
    assert np.array_equal(view[0, 20:], view[0, 19:20].repeat(4, 0))
    assert not np.array_equal(view[0, 18], view[0, 19])


def run(capsys, *arguments):
    status = main(["classify-video", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_classify_video(capsys, tiny, tmp_path):
    paths = []
    for name, color in (("red", RED), ("blue", BLUE)):
        path = tmp_path / f"{name}.png"
        # Frames that are all the same would be stored as one.
        first, *rest = frames([tuple(max(0, c - i) for c in color) for i in range(9)])
        first.save(path, save_all=True, append_images=rest)
        paths.append(path)
    options = ["--model", tiny, "--frames", 6, "--clips", 1]
    status, out, err = run(capsys, *paths, *options, "--top", 1)
    assert status == 0 and "was inflated to videos" in err
    assert out.splitlines()[::2] == [str(path) for path in paths]
    assert [line.split()[-1] for line in out.splitlines()[1::2]] == ["red", "blue"]
    status, out, err = run(capsys, paths[1], tmp_path / "none.mp4", *options, "--json")
    good, bad = map(json.loads, out.splitlines())
    assert status == 1 and good["classes"][0]["class"] == "blue" and "no such file" in bad["error"]
    assert sum(entry["probability"] for entry in good["classes"]) == pytest.approx(1, abs=1e-5)
    assert run(capsys, tmp_path / "none.mp4", *options)[0] == 2


def test_a_saved_video_model(capsys, tiny, gif, tmp_path):
    folder = inflate(NAT.from_pretrained(tiny)).save_pretrained(tmp_path / "model")
    status, out, err = run(capsys, gif, "--model", folder, "--frames", 6, "--clips", 1)
    assert (status, err) == (0, "") and len(out.splitlines()) == 4
    assert main(["classify", str(gif), "--model", str(folder)]) == 2
    assert "must classify images but is made for video-classification" in capsys.readouterr().err


def test_info_counts_for_a_clip(capsys):
    assert main(["info", "dinat3d_mini"]) == 0
    out = capsys.readouterr().out
    assert "for 32 x 224 x 224 pixels" in out and "16 x 56 x 56" in out and "1 8 1" in out


@pytest.mark.skipif(not FILM.exists(), reason="needs opencv-doc")
def test_a_real_film(capsys):
    assert count_frames(FILM) == 795
    first, last = (np.asarray(read_frames(FILM, [i])[i], np.float32) for i in (0, 794))
    assert first.shape == (576, 768, 3) and np.abs(first - last).max() > 100
    status, out, _ = run(capsys, FILM, "--model", "nat_pico_fashion", "--json", "--top", 10)
    found = {entry["class"]: entry["probability"] for entry in json.loads(out)["classes"]}
    assert status == 0 and sum(found.values()) == pytest.approx(1, abs=1e-5)
    model = inflate(NAT.from_pretrained("nat_pico_fashion"))
    views = list(view_video(model, FILM))  # 4 clips of 32 frames, 3 squares of each
    assert [view.shape for view in views] == [(3, 32, 28, 28, 1)] * 4
    logits = [np.array(model(mx.array(view))) for view in views]
    expected = mx.softmax(mx.array(np.concatenate(logits)), axis=-1).mean(axis=0)
    assert np.allclose([found[name] for name in CLASSES], expected, atol=1e-5)

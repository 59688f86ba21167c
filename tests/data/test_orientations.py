"""All eight ways to hold a camera, mirrors included, in photos and in videos."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.data import ImageError, read_image
from natten_zoo.data.video import VideoError, count_frames, displayed, read_frames
from natten_zoo.data.volumes import VolumeError, read_volume

# By EXIF's number: the display matrix a b c d, and what it does to an array.
TURNS = {
    1: ((1, 0, 0, 1), lambda x: x),
    2: ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    3: ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    4: ((1, 0, 0, -1), lambda x: x[::-1]),
    5: ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    6: ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    7: ((0, -1, -1, 0), lambda x: np.rot90(x, 2).swapaxes(0, 1)),
    8: ((0, -1, 1, 0), lambda x: np.rot90(x)),
}
ALL = pytest.mark.parametrize("number", TURNS)


@pytest.fixture
def picture():
    """Each quarter of another color, and no symmetry."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:] = (255, 0, 0), (0, 255, 0)
    pixels[24:, :32], pixels[24:, 32:] = (0, 0, 255), (255, 255, 255)
    return pixels


def close(image, expected):
    found = np.asarray(image.convert("RGB")).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 12  # formats are lossy


@ALL
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_photos(picture, tmp_path, number, suffix):
    exif = Image.Exif()
    exif[0x0112] = number
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(picture).save(path, exif=exif)
    close(read_image(path), TURNS[number][1](picture))


@ALL
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animations(picture, tmp_path, number, suffix):
    exif = Image.Exif()
    exif[0x0112] = number
    path = tmp_path / f"clip.{suffix}"
    frames = [Image.fromarray(picture // (1 + i)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], exif=exif)
    for index, frame in read_frames(path, [0, 2]).items():
        close(frame, TURNS[number][1](picture // (1 + index)))


@ALL
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_display_matrices(picture, number, scale):
    (a, b, c, d), turn = TURNS[number]
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1]) * scale * 65536
    assert np.array_equal(displayed(Image.fromarray(picture), matrix), turn(picture))


@ALL
def test_videos(picture, tmp_path, number):
    av = pytest.importorskip("av")
    path, (matrix, turn) = tmp_path / "clip.mp4", TURNS[number]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    a, b, c, d = (65536 * value for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert count_frames(path) == 3
    close(read_frames(path, [1])[1], turn(picture))


def test_transparent_frames_are_laid_on_white(tmp_path):
    clear = [Image.new("RGBA", (4, 4), (255, 0, i, 0)) for i in range(2)]
    clear[0].save(tmp_path / "clip.png", save_all=True, append_images=clear[1:])
    assert read_frames(tmp_path / "clip.png", [0])[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("a.jpg", read_image, ImageError),
        ("a.mp4", count_frames, VideoError),
        ("a.gif", lambda path: read_frames(path, [0]), VideoError),
        ("a.nii.gz", read_volume, VolumeError),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name, read, error):
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match="a pipe, not a"):
        read(tmp_path / name)


def test_a_pipe_does_not_hide_other_files(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.jpg")
    Image.new("L", (28, 28)).save(tmp_path / "b.jpg")
    (tmp_path / "empty").mkdir()
    assert main(["classify", str(tmp_path), str(tmp_path / "empty"), "/dev/null"]) == 1
    out, err = capsys.readouterr()
    assert "b.jpg" in out and "a.jpg: a pipe, not an image" in err
    assert "empty: a folder without images" in err and "/dev/null: a device, not an image" in err

"""Every kind of image that people have: right, or an error that names the file."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from natten_zoo.data import ImageError, read_image
from natten_zoo.data import reading as reading_module


@pytest.fixture
def corner():
    """A photo whose top left is red, so that every turn of it shows."""
    pixels = np.full((40, 60, 3), 128, np.uint8)
    pixels[:20, :20] = (255, 0, 0)
    return Image.fromarray(pixels)


def pixels(*args, **kwargs):
    return np.asarray(read_image(*args, **kwargs))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, corner, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corner.transpose(undo[orientation]) if orientation in undo else corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png"), np.asarray(corner))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_and_black_and_white(tmp_path, mode):
    image = Image.fromarray(np.full((8, 8), 255, np.uint8)).convert(mode)
    image.save(tmp_path / "gray.png")
    assert np.array_equal(pixels(tmp_path / "gray.png"), np.full((8, 8, 3), 255))
    assert np.array_equal(pixels(tmp_path / "gray.png", channels=1), np.full((8, 8), 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black below, which dropping alpha would uncover
    if mode == "PA":
        image = image.quantize(4)  # a palette with transparency
        image.save(tmp_path / "clear.png")
    else:
        image.convert(mode).save(tmp_path / "clear.png")
    assert pixels(tmp_path / "clear.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_half_transparent_pixels_are_mixed():
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(pixels(image)[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_color_lies_on_white(tmp_path, mode, clear):
    Image.new(mode, (1, 1), clear).save(tmp_path / "key.png", transparency=clear)
    assert pixels(tmp_path / "key.png").tolist() == [[[255, 255, 255]]]


def test_palette(tmp_path, corner):
    corner.quantize(4).save(tmp_path / "palette.gif")
    assert np.abs(pixels(tmp_path / "palette.gif").astype(int) - np.asarray(corner)).max() <= 4


@pytest.mark.parametrize("name", ["gray.png", "gray.tiff"])
def test_16_bits_are_scaled(tmp_path, name):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert pixels(tmp_path / name, channels=1).tolist() == [[0, 1, 128, 255]]
    assert pixels(tmp_path / name)[0, 2].tolist() == [128, 128, 128]
    assert pixels(values, channels=1).tolist() == [[0, 1, 128, 255]]


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(("color", "samples"), [(2, 3), (6, 4), (4, 2)])
def test_16_bits_with_color_or_alpha(tmp_path, color, samples):
    """Pillow cannot write these, so the file is made by hand: a third of white, opaque."""
    pixel = [21845] * samples
    if color != 2:
        pixel[-1] = 65535  # alpha
    header = struct.pack(">IIBBBBB", 1, 1, 16, color, 0, 0, 0)
    line = b"\0" + struct.pack(f">{samples}H", *pixel)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(line)), chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert pixels(tmp_path / "deep.png").tolist() == [[[85, 85, 85]]]


def test_transparent_gray_of_16_bits():
    image = Image.fromarray(np.array([[0, 500]], np.uint16))
    image.info["transparency"] = 500
    assert pixels(image, channels=1).tolist() == [[0, 255]]


@pytest.mark.parametrize(("dtype", "value"), [(np.int32, 1 << 20), (np.float32, 0.5)])
def test_pixels_without_a_white_are_refused(tmp_path, dtype, value):
    Image.fromarray(np.full((2, 2), value, dtype)).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=r"deep.tiff: .*no agreed white"):
        read_image(tmp_path / "deep.tiff")


def test_cmyk(tmp_path, corner):
    corner.convert("CMYK").save(tmp_path / "print.jpg", quality=95, subsampling=0)
    assert np.abs(pixels(tmp_path / "print.jpg").astype(int) - np.asarray(corner)).mean() < 4


def test_first_frame_of_an_animation(tmp_path, corner):
    other = Image.new("RGB", corner.size, "blue")
    corner.save(tmp_path / "moving.gif", save_all=True, append_images=[other])
    assert np.abs(pixels(tmp_path / "moving.gif").astype(int) - np.asarray(corner)).max() <= 4


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_truncated(tmp_path, name):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG" if name.endswith("jpg") else "PNG")
    (tmp_path / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ImageError, match=rf"{name}: .*(truncated|incomplete)"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an image|broken"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "not an image|truncated"),
    ],
)
def test_not_an_image(tmp_path, content, reason):
    (tmp_path / "text.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"text.jpg: .*({reason})"):
        read_image(tmp_path / "text.jpg")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="a folder"):
        read_image(tmp_path)


def test_heic_says_what_to_do(tmp_path):
    (tmp_path / "phone.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(ImageError, match="sips"):
        read_image(tmp_path / "phone.HEIC")


def test_huge_jpeg_is_decoded_smaller(tmp_path, monkeypatch, corner):
    corner.resize((600, 400)).save(tmp_path / "huge.jpg", quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 4)
    monkeypatch.setattr(reading_module, "DRAFT_SIZE", 100)
    small = read_image(tmp_path / "huge.jpg")
    assert small.size == (150, 100)
    assert np.abs(np.asarray(small)[20, 20].astype(int) - (255, 0, 0)).max() < 16
    monkeypatch.setattr(reading_module, "LARGEST_JPEG", 600 * 400 - 1)
    with pytest.raises(ImageError, match=r"huge.jpg: .*240000 pixels"):
        read_image(tmp_path / "huge.jpg")


def test_huge_png_is_refused(tmp_path, monkeypatch, corner):
    corner.resize((600, 400)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 4)
    with pytest.raises(ImageError, match=r"huge.png: .*240000 pixels"):
        read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays(shape):
    assert read_image(np.full(shape, 255, np.uint8)).size == (5, 4)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_bad_arrays(array):
    with pytest.raises(ImageError, match="an array must"):
        read_image(array)


def test_bad_arguments(corner):
    with pytest.raises(ValueError, match="'channels' must be 1 or 3 but got 2"):
        read_image(corner, channels=2)
    with pytest.raises(TypeError, match=r"\[read_image\] 'source'"):
        read_image(3.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_files_are_read_or_refused(tmp_path, corner, kind):
    whole = io.BytesIO()
    corner.save(whole, kind)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for _ in range(60):
        content = np.frombuffer(whole.getvalue(), np.uint8).copy()
        content[rng.integers(0, min(len(content), 300), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes()[: rng.integers(1, len(content) + 1)])
        try:
            assert read_image(path).mode == "RGB"
        except ImageError as error:
            assert "damaged: " in str(error)

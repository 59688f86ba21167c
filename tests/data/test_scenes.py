"""Folders of images and masks: every layout that is taken, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natten_zoo.data.reading import ImageError
from natten_zoo.data.scenes import IGNORE, find_parts, open_scenes, read_mask, split
from natten_zoo.data.warning import DataWarning


def write(folder: Path, image: str, mask: str, number: int, classes: int = 3) -> None:
    """An image of 6 x 4 pixels that is like no other, and its mask."""
    random = np.random.default_rng(number)
    for name, high, shape in ((image, 256, (4, 6, 3)), (mask, classes, (4, 6))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, high, shape).astype(np.uint8)
        pixels.flat[0] = classes - 1  # the last class occurs
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        write(tmp_path, f"images/{number}.png", f"masks/{number}.png", number)
    return tmp_path


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("images/{}", "annotations/{}"),  # ADE20K
        ("JPEGImages/{}", "SegmentationClass/{}"),
        ("{}/images", "{}/masks"),
        ("{}/images", "{}/labels"),
    ],
)
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "validation")])
def test_layouts_with_parts(tmp_path, images, masks, train, val):
    for number, part in enumerate((train, train, val, "test")):
        place = images.format(part), masks.format(part)
        write(tmp_path, f"{place[0]}/a/{number}.bmp", f"{place[1]}/a/{number}.png", number)
    with pytest.warns(DataWarning, match="not used of .*test"):
        parts = find_parts(tmp_path)
    names = {part: [scene.image.stem for scene in scenes] for part, scenes in parts.items()}
    assert names == {"train": ["0", "1"], "val": ["2"]}
    assert all(s.mask.stem == s.image.stem for scenes in parts.values() for s in scenes)


def test_a_folder_without_parts_is_split(folder):
    scenes = open_scenes(folder, 0.4, seed=3)
    assert (len(scenes.train), len(scenes.val)) == (3, 2)
    assert scenes.classes == ("class 0", "class 1", "class 2") and not scenes.named
    assert open_scenes(folder, 0.4, seed=3) == scenes
    assert any(open_scenes(folder, 0.4, seed=n).val != scenes.val for n in range(4))
    assert not open_scenes(folder).val


def test_copies_stay_together(folder):
    for number in (5, 6, 7):
        for kind in ("images", "masks"):
            shutil.copy(folder / kind / "0.png", folder / kind / f"{number}.png")
    for seed in range(8):
        parts = split(find_parts(folder)["train"], 0.4, seed)
        copies = [{"0", "5", "6", "7"} & {scene.image.stem for scene in part} for part in parts]
        assert sorted(map(len, copies)) == [0, 4]


def test_names_of_classes(folder):
    (folder / "classes.txt").write_text("sky\nsea\nsand\nboat\n")
    scenes = open_scenes(folder)
    assert scenes.classes == ("sky", "sea", "sand", "boat") and scenes.named
    (folder / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(ValueError, match=r"masks/0.png has class 2, but .*classes.txt names 2"):
        open_scenes(folder)
    (folder / "classes.txt").write_text("sky\nsky\nsea\n")
    with pytest.raises(ValueError, match="no two of one name"):
        open_scenes(folder)


def test_masks_are_read_as_they_are(tmp_path):
    values = np.array([[0, 1, 7], [2, 254, 255]], np.uint8)
    gray, palette = Image.fromarray(values), Image.fromarray(values)
    palette.putpalette([*range(256)] * 3)
    gray.save(tmp_path / "gray.png")
    palette.save(tmp_path / "palette.png")
    for name in ("gray.png", "palette.png"):
        assert np.array_equal(read_mask(tmp_path / name), values)
    reduced = [[IGNORE, 0, 6], [1, 253, IGNORE]]
    assert read_mask(tmp_path / "gray.png", reduce_labels=True).tolist() == reduced
    Image.fromarray(values > 1).save(tmp_path / "two.png")
    assert read_mask(tmp_path / "two.png").tolist() == [[0, 0, 1], [1, 1, 1]]
    few = Image.fromarray(np.array([[0, 1, 3]], np.uint8))
    few.putpalette([*range(12)])
    few.save(tmp_path / "few.png", bits=2)
    assert read_mask(tmp_path / "few.png").tolist() == [[0, 1, 3]]


def test_masks_that_would_be_read_wrongly_are_refused(tmp_path):
    color = Image.new("RGB", (3, 2))
    color.save(tmp_path / "color.png")
    color.convert("L").save(tmp_path / "lossy.jpg")
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "none.png").write_bytes(b"no image")
    for name, reason in {
        "color.png": "mode RGB",
        "lossy.jpg": "is a JPEG of mode L",
        "deep.png": "mode I;16",
        "none.png": "can't be read as a mask",
    }.items():
        with pytest.raises(ImageError, match=f"{name} .*{reason}"):
            read_mask(tmp_path / name)


def test_gray_of_two_bits_is_refused(tmp_path):
    """Pillow would read 0, 85, 170, 255 for 0, 1, 2, 3."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x1b"))  # 0, 1, 2, 3
    file = tmp_path / "bits.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    assert np.asarray(Image.open(file)).tolist() == [[0, 85, 170, 255]]
    with pytest.raises(ImageError, match="one channel of 8 bits"):
        read_mask(file)


def test_every_bad_file_is_named(folder):
    Image.new("L", (5, 4)).save(folder / "masks/1.png")
    (folder / "images/2.png").write_bytes(b"cut")
    Image.new("RGB", (6, 4)).save(folder / "masks/3.png")
    with pytest.raises(ImageError, match="3 of 5 images or masks can't be used") as error:
        open_scenes(folder)
    text = str(error.value)
    assert "masks/1.png must have the 6 x 4 pixels of its image but is 5 x 4" in text
    assert "images/2.png" in text and "masks/3.png" in text


def test_missing_and_left_over_files_are_named(folder):
    (folder / "images/4.png").unlink()
    with pytest.warns(DataWarning, match=r"masks without an image in .*: 4"):
        open_scenes(folder)
    (folder / "masks/2.png").unlink()
    with pytest.raises(ValueError, match=r"lacks the masks of .*images/2.png"):
        open_scenes(folder)
    with pytest.raises(ValueError, match="must have images/ and masks/"):
        open_scenes(folder / "images")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_scenes(folder / "nothing")
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    with pytest.raises(ValueError, match="must have images but has none"):
        open_scenes(folder)


def test_images_that_differ_in_the_suffix_are_refused(folder):
    Image.new("RGB", (6, 4)).save(folder / "images/0.bmp")
    with pytest.raises(ValueError, match="differ in the suffix only"):
        open_scenes(folder)


def test_a_copy_is_not_validated_on(tmp_path):
    for number, part in enumerate(("train", "val")):
        write(tmp_path, f"images/{part}/{number}.png", f"masks/{part}/{number}.png", number)
    shutil.copy(tmp_path / "images/train/0.png", tmp_path / "images/val/1.png")
    with pytest.raises(ValueError, match="1 of 1 images to validate on are copies"):
        open_scenes(tmp_path)


def test_the_fingerprint_is_of_names_and_masks(folder):
    before = open_scenes(folder).fingerprint
    mask = np.asarray(Image.open(folder / "masks/0.png")).copy()
    mask[1, 1] = (mask[1, 1] + 1) % 3
    Image.fromarray(mask).save(folder / "masks/0.png")
    changed = open_scenes(folder).fingerprint
    assert changed["train"] != before["train"] and changed["val"] == before["val"]

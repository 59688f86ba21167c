"""Lists of labeled images as programs and people write them, and names that need a second look."""

import os
import unicodedata

import pytest

from natten_zoo.data.labeled import open_labeled
from natten_zoo.data.warning import DataWarning


def opened(data, tmp_path, fraction=0.5):
    return open_labeled(data, fraction, 1, tmp_path / "unpacked")


def write_csv(path, rows, header="file,label", **kwargs):
    path.write_text("\n".join([header, *rows]), **{"encoding": "utf-8", **kwargs})
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["file,label", "Filename, Class", "id,image_path,label"])
def test_lists_as_programs_write_them(flat, tmp_path, encoding, mark, header):
    files = flat("x", 4)
    extra = header.startswith("id")
    rows = [f"{f'{i},' if extra else ''}x/{f.name},{'ab'[i % 2]}" for i, f in enumerate(files)]
    lines = [line.replace(",", mark) for line in [header, *rows, ""]]
    (flat.root / "l.csv").write_text("\r\n".join(lines), encoding=encoding, newline="")
    images = opened(flat.root / "l.csv", tmp_path, 0)
    assert images.classes == ("a", "b") and images.train.files == files


def test_labels_and_files_in_any_spelling(flat, tmp_path):
    names = [unicodedata.normalize("NFD", "é.png"), "1.png", "2.png"]
    for name in names:
        flat("x", 1, name)
    rows = ["x/é.png,thé", f"x\\1.png, {unicodedata.normalize('NFD', 'thé')} ", "x/2,\ufeffcafé"]
    images = opened(write_csv(flat.root / "l.csv", rows), tmp_path, 0)
    assert images.classes == ("café", "thé") and images.train.labels == [1, 1, 0]
    assert all(file.exists() for file in images.train.files)


@pytest.mark.parametrize("folder", ["train", "train_images", "images", ""])
def test_files_beside_a_list_by_their_number(flat, tmp_path, folder):
    """As Kaggle has it: train.csv with id and label, train/ID.jpg."""
    files = flat(folder, 4)
    rows = [f"{f.stem},{'ab'[i % 2]}" for i, f in enumerate(files)]
    images = opened(write_csv(flat.root / "train.csv", rows, "id,label"), tmp_path, 0)
    assert [f.resolve() for f in images.train.files] == files


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev "])
def test_a_column_of_parts(flat, tmp_path, val):
    files = flat("x", 6)
    parts = ["train", "Training", "TRAIN", "train", val, "test"]
    rows = [
        f"x/{f.name},{'ab'[i % 2]},{p}" for i, (f, p) in enumerate(zip(files, parts, strict=True))
    ]
    with pytest.warns(DataWarning, match="1 lines of the split 'test'"):
        images = opened(write_csv(flat.root / "l.csv", rows, "file,label,split"), tmp_path)
    assert images.train.files == files[:4] and images.val.files == files[4:5]


def test_classes_that_are_called_almost_alike_are_said(flat, tmp_path):
    for name in ("Cat", "cat", "dog"):
        flat(name, 2)
    with pytest.warns(DataWarning, match="'Cat' and 'cat'"):
        assert opened(flat.root, tmp_path).classes == ("Cat", "cat", "dog")


def test_validation_may_spell_a_class_otherwise(flat, tmp_path):
    for folder in ("train/Golden Retriever", "train/beagle", "val/golden_retriever", "val/Beagle"):
        flat(folder, 2)
    images = opened(flat.root, tmp_path)
    assert images.val.labels == [1, 1, 0, 0]


def test_numbered_folders_are_their_numbers(flat, tmp_path):
    for number in (0, 2, 10):
        flat(f"train/{number}", 2)
        flat(f"val/{number:04}", 1)
    images = opened(flat.root, tmp_path)
    assert images.classes == ("0", "2", "10") and images.val.labels == [0, 1, 2]


def test_a_pipe_is_no_data_set(tmp_path):
    os.mkfifo(tmp_path / "flowers.tar")
    with pytest.raises(ValueError, match=r"flowers\.tar must be a folder, .*, but is a pipe"):
        opened(tmp_path / "flowers.tar", tmp_path)

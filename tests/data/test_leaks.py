"""No file is trained and validated on, under whatever name, and none counts twice."""

import os

import pytest

from natten_zoo.data.labeled import check_copies, open_labeled
from natten_zoo.data.warning import DataWarning


def opened(data, tmp_path, fraction=0.5):
    return open_labeled(data, fraction, 1, tmp_path / "unpacked")


def write_csv(path, rows, header="file,label", **kwargs):
    path.write_text("\n".join([header, *rows]), **{"encoding": "utf-8", **kwargs})
    return path


def rows_of(flat, repeats):
    files = {name: flat(name, 10) for name in "ab"}
    return [f"{name}/{f.name},{name}" for name, group in files.items() for f in group] * repeats


def test_a_list_that_names_its_files_twice(flat, tmp_path):
    path = write_csv(flat.root / "l.csv", rows_of(flat, 3))
    with pytest.warns(DataWarning, match="40 files are named more than once"):
        images = opened(path, tmp_path)
    assert len(images.train.files) == len(images.val.files) == 10
    assert not set(images.train.files) & set(images.val.files)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_in_both_parts(flat, tmp_path, link):
    for name in ("a", "b"):
        flat(f"train/{name}", 3)
        flat(f"val/{name}", 2)
    link(flat.root / "train" / "a" / "0.png", flat.root / "val" / "a" / "extra.png")
    with pytest.raises(ValueError, match=r"extra\.png would be both trained and validated on"):
        opened(flat.root, tmp_path)


def test_a_linked_folder_in_both_parts(flat, tmp_path):
    for name in ("a", "b"):
        flat(f"train/{name}", 3)
    (flat.root / "val").symlink_to(flat.root / "train")
    with pytest.raises(ValueError, match="both trained and validated on"):
        opened(flat.root, tmp_path)


def test_one_file_of_two_classes(flat, tmp_path):
    rows = [*rows_of(flat, 1), "./a/../a/0.png,b"]
    with pytest.raises(ValueError, match=r"0\.png has two labels: a and b"):
        opened(write_csv(flat.root / "l.csv", rows), tmp_path)
    rows = ["a/0.png,a,train", "b/0.png,b,train", "a/0.png,a,val"]
    with pytest.raises(ValueError, match=r"0\.png would be both trained and validated on"):
        opened(write_csv(flat.root / "l.csv", rows, "file,label,split"), tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_held_out_together(flat, tmp_path, seed):
    for name in ("a", "b"):
        for path in flat(name, 10):
            for copy in range(3):
                path.with_name(f"{path.stem} copy {copy}.png").write_bytes(path.read_bytes())
    images = open_labeled(flat.root, 0.3, seed, tmp_path)
    check_copies(images)
    assert len(images.val.files) == 2 * 3 * 4 and len(images.train.files) == 2 * 7 * 4


def test_copies_under_two_classes_are_held_out_together_and_said(flat, tmp_path):
    for path in flat("a", 10):
        (flat.root / "b").mkdir(exist_ok=True)
        (flat.root / "b" / path.name).write_bytes(path.read_bytes())
    flat("b", 4, "more {}.png")
    with pytest.warns(DataWarning, match="10 images are in several classes"):
        images = opened(flat.root, tmp_path)
    check_copies(images)


def test_copies_in_both_parts_are_no_validation(flat, tmp_path):
    for name in ("a", "b"):
        flat(f"train/{name}", 3)
        flat(f"val/{name}", 2)
    copy = flat.root / "val" / "b" / "other name.png"
    copy.write_bytes((flat.root / "train" / "b" / "1.png").read_bytes())
    images = opened(flat.root, tmp_path)
    with pytest.raises(ValueError, match=r"1 of 5 images .* copies .*other name\.png = .*1\.png"):
        check_copies(images)

"""Labeled images for training: folders, archives and lists, their split, and what is refused."""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from natten_zoo.data.labeled import open_labeled


def test_folders_archives_and_lists_are_the_same_data(flowers, tmp_path):
    rows = [(p.relative_to(flowers.parent), p.parent.name) for p in sorted(flowers.glob("*/*"))]
    with (flowers.parent / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    with tarfile.open(tmp_path / "flowers.tar.gz", "w:gz") as tar:
        tar.add(flowers, "flowers")
    names = []
    for data in (flowers, flowers.parent / "list.csv", tmp_path / "flowers.tar.gz"):
        images = open_labeled(data, 0.3, 7, tmp_path / "unpacked")
        assert images.classes == ("blue", "green", "red")
        assert (len(images.train.files), len(images.val.files)) == (21, 9)
        names.append([(f.parent.name, f.name) for f in images.val.files])
    assert names[0] == names[1] == names[2]
    assert names[0] != [
        (f.parent.name, f.name) for f in open_labeled(flowers, 0.3, 8, tmp_path).val.files
    ]


def test_a_list_with_a_split_of_its_own(flowers, tmp_path):
    path = flowers.parent / "split.csv"

    def write(*rows: str, header: str = "file,label,split") -> Path:
        path.write_text("\n".join([header, *rows]))
        return path

    rows = [f"flowers/{name}/{i}.png,{name},train" for name in ("red", "blue") for i in range(3)]
    images = open_labeled(write(*rows, "flowers/red/9.png,red,val"), 0.5, 0, tmp_path)
    assert images.classes == ("blue", "red") and images.train.labels == [1, 1, 1, 0, 0, 0]
    assert [f.name for f in images.val.files] == ["9.png"] and images.val.labels == [1]
    with pytest.raises(ValueError, match="validation has classes that training has not: pink"):
        open_labeled(write(*rows, "flowers/red/9.png,pink,val"), 0.5, 0, tmp_path)
    with pytest.raises(ValueError, match="line 8 must have a file, a label and"):
        open_labeled(write(*rows, "flowers/red/9.png,red,later"), 0.5, 0, tmp_path)
    with pytest.raises(ValueError, match="with the columns 'file' and 'label', but the first line"):
        open_labeled(write(*rows, header="where,what"), 0.5, 0, tmp_path)


def test_a_file_that_is_none_of_these(flowers, tmp_path):
    with pytest.raises(ValueError, match=r"0.png must be a folder, .*, but is no text"):
        open_labeled(flowers / "red" / "0.png", 0.5, 0, tmp_path)


def test_an_archive_with_a_split_of_its_own(flowers, tmp_path):
    with tarfile.open(tmp_path / "flowers.tar", "w") as tar:
        tar.add(flowers, "train")
        tar.add(flowers / "red", "val/red")
    images = open_labeled(tmp_path / "flowers.tar", 0.5, 0, tmp_path / "unpacked")
    assert len(images.train.files) == 30 and set(images.val.labels) == {2}


def test_an_archive_cannot_write_elsewhere(flowers, tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(flowers / "red" / "0.png", "../../outside.png")
    with pytest.raises(ValueError, match=r"evil.tar can't be unpacked: .* outside"):
        open_labeled(tmp_path / "evil.tar", 0.5, 0, tmp_path / "a" / "unpacked")
    assert not list(tmp_path.rglob("outside.png"))


def test_archives_that_are_damaged_or_hold_no_images(flowers, tmp_path):
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as tar:
        tar.add(flowers, "flowers")
    content = (tmp_path / "cut.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut.tar.gz can't be unpacked"):
        open_labeled(tmp_path / "cut.tar.gz", 0.5, 0, tmp_path / "unpacked")
    with tarfile.open(tmp_path / "code.tar", "w") as tar:
        tar.add(__file__, "test.py")
    with pytest.raises(ValueError, match=r"code.tar must hold images but has none"):
        open_labeled(tmp_path / "code.tar", 0.5, 0, tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").glob("*"))


def test_an_archive_that_changed_is_unpacked_again(flowers, tmp_path):
    classes = []
    for name in ("red", "rose"):
        with tarfile.open(tmp_path / "flowers.tar", "w") as tar:
            tar.add(flowers / "red", name)
            tar.add(flowers / "blue", "blue")
        os.utime(tmp_path / "flowers.tar", ns=(0, len(classes)))
        images = open_labeled(tmp_path / "flowers.tar", 0.5, 0, tmp_path / "unpacked")
        classes.append(images.classes)
    assert classes == [("blue", "red"), ("blue", "rose")]


def test_a_split_of_its_own(flowers, tmp_path):
    shutil.copytree(flowers, tmp_path / "d" / "train")
    shutil.copytree(flowers / "red", tmp_path / "d" / "val" / "red")
    images = open_labeled(tmp_path / "d", 0.5, 0, tmp_path)
    assert len(images.train.files) == 30 and set(images.val.labels) == {2}
    shutil.copytree(flowers / "red", tmp_path / "d" / "val" / "rose")
    with pytest.raises(ValueError, match="validation has classes that training has not: rose"):
        open_labeled(tmp_path / "d", 0.5, 0, tmp_path)

"""Which folders of a data set are its parts, what is not used, and what only systems make."""

import json
import tarfile
import warnings
import zipfile

import pytest

from natten_zoo.data.image_files import find_images
from natten_zoo.data.image_folder import ImageFolder
from natten_zoo.data.labeled import class_parents, open_labeled
from natten_zoo.data.splits import part_of
from natten_zoo.data.warning import DataWarning


def parents(samples, up=2):
    return {file.parents[up - 1].name for file in samples.files}


def opened(data, tmp_path, fraction=0.5):
    return open_labeled(data, fraction, 1, tmp_path / "unpacked")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "valid"), ("Train", "Val"), ("training", "validation"), ("TRAIN", "dev"),
        ("train_set", "val_set"), ("train2017", "val2017"), ("seg_train", "eval"),
        ("Training", "Validation Set"), ("trainset", "valset"), ("images_train", "images_val"),
    ],
)  # fmt: skip
def test_parts_by_whatever_name(flat, tmp_path, train, val):
    for part in (train, val):
        for name in ("rose", "tulip"):
            flat(f"{part}/{name}", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = opened(flat.root, tmp_path)
    assert images.classes == ("rose", "tulip")
    assert parents(images.train) == {train} and parents(images.val) == {val}


@pytest.mark.parametrize("test", ["test", "Testing", "test_set"])
def test_what_is_not_used_is_said(flat, tmp_path, test):
    for part in ("train", test):
        for name in ("rose", "tulip"):
            flat(f"{part}/{name}", 3)
    flat("unlabeled", 2)
    flat("train", 1)
    with pytest.warns(DataWarning) as said:
        images = opened(flat.root, tmp_path)
    text = " ".join(str(w.message) for w in said)
    assert f"{test}/ (6 images)" in text and "unlabeled/ (2 images)" in text
    assert "1 images in" in text and "in no class's folder" in text
    assert parents(images.train) == parents(images.val) == {"train"}


def test_an_empty_part_is_said(flat, tmp_path):
    for name in ("rose", "tulip"):
        flat(f"train/{name}", 3)
    (flat.root / "val" / "rose").mkdir(parents=True)
    with pytest.warns(DataWarning, match=r"val/ \(0 images\)"):
        opened(flat.root, tmp_path)


def test_a_train_is_a_vehicle(flat, tmp_path):
    for name in ("train", "bus", "test"):
        flat(name, 4)
    assert opened(flat.root, tmp_path).classes == ("bus", "test", "train")
    assert class_parents(flat.root) == [flat.root]


def test_parts_without_one_to_train_on(flat, tmp_path):
    for part in ("valid", "test"):
        for name in ("rose", "tulip"):
            flat(f"{part}/{name}", 2)
    with pytest.raises(ValueError, match="has no folder to train on, but test/, valid/"):
        opened(flat.root, tmp_path)
    for part in ("train", "Training"):
        flat(f"{part}/rose", 2)
    with pytest.raises(ValueError, match="several folders to train on"):
        opened(flat.root, tmp_path)


def test_a_folder_in_a_folder(flat, tmp_path):
    for part in ("train", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            flat(f"chest_xray/chest_xray/{part}/{name}", 2)
            flat(f"chest_xray/__MACOSX/{part}/{name}", 2)
    with pytest.warns(DataWarning, match="classes are the folders in"):
        images = opened(flat.root, tmp_path)
    assert images.classes == ("NORMAL", "PNEUMONIA") and parents(images.train) == {"train"}


def test_metadata_as_hugging_face_has_it(flat, tmp_path):
    for part in ("train", "validation"):
        files = flat(part, 4)
        lines = [{"file_name": f.name, "label": "ab"[i % 2]} for i, f in enumerate(files)]
        (flat.root / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = opened(flat.root, tmp_path)
    assert images.classes == ("a", "b") and images.train.labels == [0, 1, 0, 1]
    assert parents(images.val, 1) == {"validation"}


def test_one_list_for_all_parts(flat, tmp_path):
    files = [*flat("train", 4), *flat("val", 2)]
    rows = [f"{f.relative_to(flat.root)},{'ab'[i % 2]}" for i, f in enumerate(files)]
    (flat.root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    images = opened(flat.root, tmp_path)
    assert images.classes == ("a", "b")
    assert parents(images.train, 1) == {"train"} and parents(images.val, 1) == {"val"}


def test_columns_of_zeros_and_ones_as_roboflow_has_them(flat, tmp_path):
    for part in ("train", "valid"):
        files = flat(part, 4)
        rows = [f"{f.name}, {i % 2}, {1 - i % 2}" for i, f in enumerate(files)]
        (flat.root / part / "_classes.csv").write_text("\n".join(["filename, cat, dog", *rows]))
    images = opened(flat.root, tmp_path)
    assert images.classes == ("cat", "dog") and images.train.labels == [1, 0, 1, 0]
    assert parents(images.val, 1) == {"valid"}
    (flat.root / "l.csv").write_text("filename,cat,dog\na.png,1,1\n")
    with pytest.raises(ValueError, match="line 2 must be of one class but is of 2"):
        opened(flat.root / "l.csv", tmp_path)


def test_parts_mean_parts():
    assert [part_of(n) for n in ("trainval", "pretraining", "train bus", "2", "")] == [None] * 5


LEFT = ("__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle",
        "System Volume Information", ".Trashes", ".git", "@Recycle", "Temporary Items")  # fmt: skip


@pytest.fixture
def left(flat):
    """Two classes, and what systems and appliances leave beside and in them."""
    for name in ("rose", "tulip"):
        flat(name, 3)
        for system in LEFT:
            flat(f"{name}/{system}", 1)
        for file in ("._0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
            (flat.root / name / file).write_bytes(b"\0\5\x16\7")
    for system in LEFT:
        flat(f"{system}/rose", 1)
    return flat.root


def test_what_only_systems_make_is_passed_over(left, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = opened(left, tmp_path, 0)
        folder = ImageFolder.open(left)
    assert images.classes == folder.classes == ("rose", "tulip")
    assert len(images.train.files) == len(folder.files) == len(find_images([left])) == 6
    assert len(find_images([f"{left}/**/*"])) == 6


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_only_systems_make_in_archives(left, tmp_path, kind):
    path = tmp_path / f"flowers.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            tar.add(left, "flowers")
            tar.add(left / "rose" / "0.png", "__MACOSX/flowers/rose/._0.png")
    else:
        with zipfile.ZipFile(path, "w") as package:
            for file in left.rglob("*"):
                package.write(file, f"flowers/{file.relative_to(left)}")
            package.write(left / "rose" / "0.png", "__MACOSX/flowers/rose/._0.png")
    images = opened(path, tmp_path, 0)
    assert images.classes == ("rose", "tulip") and len(images.train.files) == 6


def test_a_zip_cannot_write_elsewhere(flat, tmp_path):
    (file,) = flat("rose", 1)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as package:
        package.write(file, "../../outside.png")
        package.write(file, "rose/1.png")
    with pytest.raises(ValueError, match="one folder per class"):
        opened(tmp_path / "evil.zip", tmp_path)
    assert (
        not (tmp_path.parent / "outside.png").exists() and not (tmp_path / "outside.png").exists()
    )


def test_a_link_to_a_folder_around_it_has_an_end(flat):
    flat("rose", 2)
    (flat.root / "rose" / "again").symlink_to(flat.root)
    assert len(find_images([flat.root])) == 2

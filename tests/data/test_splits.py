"""Which folders of a data set are its parts, what is not used, and what only systems make."""

import json
import os
import tarfile
import unicodedata
import warnings
import zipfile

import pytest

from natten_zoo.data.image_files import find_images
from natten_zoo.data.image_folder import ImageFolder
from natten_zoo.data.labeled import check_copies, class_parents, open_labeled
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

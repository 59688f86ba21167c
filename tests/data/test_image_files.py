"""Finding files, reading them in batches, and the labeled sources."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from natten_zoo.data import ImageError, Preprocess, read_image
from natten_zoo.data.fashion_mnist import FOLDER, fashion_mnist, read_idx
from natten_zoo.data.image_files import find_images, read_batches
from natten_zoo.data.image_folder import ImageFolder
from natten_zoo.data.labels import class_colors, class_names, imagenet_classes, read_labels
from natten_zoo.data.warning import DataWarning

GREY = Preprocess(size=4, crop_pct=1.0, mean=(0.0,), std=(1.0,))


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.png", "b/1.PNG", "a/deep/3.png", ".hidden/4.png", "b/._1.png", "5.png"):
        save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    return tmp_path


def test_find_images_in_folders(tree):
    names = [str(path.relative_to(tree)) for path in find_images([tree])]
    assert names == ["5.png", "a/deep/3.png", "b/1.PNG", "b/2.png"]


def test_find_images_by_pattern_and_name(tree):
    found = find_images([f"{tree}/b/*.png", f"{tree}/**/*.png", tree / "missing.png"])
    names = [str(path.relative_to(tree)) for path in found]
    assert names == ["b/2.png", "5.png", "a/deep/3.png", "missing.png"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    path = save(tmp_path / "photo[1].png")
    assert find_images([path]) == [path]


@pytest.mark.parametrize("pattern", ["*.png", "."])
def test_what_holds_no_image_is_listed_and_fails(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (path,) = find_images([pattern])
    with pytest.raises(ImageError, match=r"(no such file|a folder without images)"):
        read_image(path)


def test_batches_keep_order_and_go_on_after_failures(tmp_path):
    paths = [save(tmp_path / f"{i}.png", i) for i in range(5)]
    paths[1].write_text("damaged")
    batches = list(read_batches(paths, GREY, batch_size=2))
    assert [batch.indices for batch in batches] == [[0], [2, 3], [4]]
    values = [float(x) * 255 for batch in batches for x in batch.images[:, 0, 0, 0]]
    assert np.allclose(values, [0, 2, 3, 4])
    assert list(batches[0].failures) == [1]
    assert "1.png: not an image" in batches[0].failures[1]


def test_a_batch_of_nothing_but_failures(tmp_path):
    (batch,) = read_batches([tmp_path / "missing.png"], GREY, batch_size=8)
    assert batch.indices == [] and len(batch.images) == 0 and "no such file" in batch.failures[0]


def test_batches_of_arrays():
    arrays = np.arange(3, dtype=np.uint8)[:, None, None] + np.zeros((4, 4), np.uint8)
    (batch,) = read_batches(arrays, GREY, batch_size=8)
    assert batch.images.shape == (3, 4, 4, 1)
    assert list(read_batches([], GREY, batch_size=8)) == []
    with pytest.raises(ValueError, match="'batch_size' must be positive"):
        next(read_batches(arrays, GREY, batch_size=0))


def test_image_folder(tree):
    (tree / "5.png").unlink()
    data = ImageFolder.open(tree)
    assert data.classes == ("a", "b")
    assert data.labels == (0, 1, 1)
    assert [file.name for file in data.files] == ["3.png", "1.PNG", "2.png"]
    assert data.labels_for(["b", "x", "a"], 3) == [2, 0, 0]  # by name
    assert data.labels_for(["p", "q"], 2, by_order=True) == [0, 1, 1]
    with pytest.raises(ValueError, match=r"2 folders 'a', 'b'; .* 2 classes: 'p', 'q'.*'by_order'"):
        data.labels_for(["p", "q"], 2)
    with pytest.raises(ValueError, match="must have 3 classes, one for each output in order, but"):
        data.labels_for(["p", "q", "r"], 3, by_order=True)
    with pytest.warns(DataWarning, match="does not name its outputs"):
        assert data.labels_for(None, 2) == [0, 1, 1]
    with pytest.raises(ValueError, match="2 folders 'a', 'b'; the model has 3 classes"):
        data.labels_for(None, 3)


def test_folders_of_which_some_are_named_like_classes(tree):
    """In sorted order those would be scored as other classes."""
    (tree / "a").rename(tree / "c_d")
    (tree / "5.png").unlink()
    data = ImageFolder.open(tree)
    with pytest.raises(ValueError, match="but others are not: of 2 folders 'c_d'"):
        data.labels_for(["x", "b"], 2)
    assert data.labels_for(["c/d", "b"], 2) == [1, 1, 0]
    assert data.labels_for(["c/d", "b", "c_d"], 3) == [1, 1, 2]


def test_image_folder_errors(tmp_path):
    (tmp_path / "list.csv").touch()
    with pytest.raises(ValueError, match=r"list\.csv is a file; it must be a folder"):
        ImageFolder.open(tmp_path / "list.csv")
    (tmp_path / "list.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="one folder per class"):
        ImageFolder.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images of empty"):
        ImageFolder.open(tmp_path)


def idx(array, count=None):
    sizes = [len(array) if count is None else count, *array.shape[1:]]
    header = struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)
    return gzip.compress(header + array.tobytes())


def test_read_idx(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "x.gz"
    path.write_bytes(idx(array))
    assert np.array_equal(read_idx(path), array)
    (tmp_path / "x").write_bytes(gzip.decompress(idx(array)))
    assert np.array_equal(read_idx(tmp_path / "x"), array)
    for content in (idx(array, count=3), idx(array)[:-12], b"text", gzip.compress(b"text")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.gz is (damaged|not an IDX)"):
            read_idx(path)


def test_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        fashion_mnist("test", tmp_path)
    with pytest.raises(ValueError, match="'split' must be"):
        fashion_mnist("validation")


@pytest.mark.skipif(not FOLDER.exists(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    images, labels = fashion_mnist("test")
    assert images.shape == (10_000, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [1000] * 10
    assert labels[:5].tolist() == [9, 2, 1, 1, 6]  # an ankle boot comes first


def test_imagenet_names():
    synsets, names = imagenet_classes()
    assert len(set(synsets)) == len(set(names)) == 1000
    assert list(synsets) == sorted(synsets)
    known = {0: "tench", 281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known
    assert class_names("imagenet-1k") == names
    assert class_names("fashion-mnist")[3] == "Dress"
    assert class_names("imagenet-22k") is class_names(None) is None
    assert class_names(["cat", "dog"]) == ("cat", "dog")
    assert class_colors(["cat", "dog"], 2) == class_colors(("cat", "dog"), 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\n\n dog \n"),
        ("labels.json", '["cat", "dog"]'),
        ("labels.json", '{"1": "dog", "0": "cat"}'),
        ("labels.txt", "\ufeffcat\ndog\n"),
        ("labels.json", '\ufeff["cat", "dog"]'),
    ],
)
def test_read_labels(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == ("cat", "dog")


def test_labels_that_are_no_text(tmp_path):
    save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo\.png must hold class names as text in UTF-8"):
        read_labels(tmp_path / "photo.png")


@pytest.mark.parametrize("text", ["[", "3", '{"a": 1}'])
def test_read_labels_errors(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json must be"):
        read_labels(tmp_path / "labels.json")

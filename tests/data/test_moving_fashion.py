"""Moving-Fashion-MNIST is what it says: deterministic, moving, and blind to a look at one frame."""

from itertools import pairwise

import numpy as np
import pytest

from natten_zoo.data import Preprocess, fashion_mnist, moving_fashion
from natten_zoo.data.labels import class_names
from natten_zoo.data.moving_fashion import CLASSES, DIRECTIONS, MovingFashion, MovingFashionSource

pytestmark = pytest.mark.skipif(
    not fashion_mnist.FOLDER.exists(), reason="needs dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def clips():
    return MovingFashion("test")


def test_clips_depend_on_seed_split_and_index_alone(clips):
    some = np.array([7, 0, 9_999, 7])
    assert np.array_equal(clips.clips(some), MovingFashion("test").clips(np.arange(10_000))[some])
    other = MovingFashion("test", seed=1)
    assert (clips.labels != other.labels).mean() > 0.8
    assert np.array_equal(clips.labels // 8, other.labels // 8)
    shorter = MovingFashion("test", frames=3)
    assert np.array_equal(shorter.clips(some), clips.clips(some)[:, :3])


def test_a_frame_is_the_one_before_it_moved_in_the_direction_of_the_label(clips):
    indices = np.arange(400)
    images, _ = fashion_mnist.fashion_mnist("test")
    speeds = set()
    for clip, label, image in zip(clips.clips(indices), clips.labels, images, strict=False):
        step = np.array(list(DIRECTIONS.values())[label % 8])
        moved = [
            all(np.array_equal(np.roll(a, step * s, (0, 1)), b) for a, b in pairwise(clip))
            for s in (1, 2, 3)
        ]
        assert sum(moved) == 1
        speeds.add(moved.index(True))
        assert np.array_equal(np.sort(clip[0][clip[0] > 0]), np.sort(image[image > 0]))
    assert speeds == {0, 1, 2}


def test_classes_are_clothes_by_directions(clips):
    assert (
        len(CLASSES) == len(set(CLASSES)) == 80 and class_names("moving-fashion-mnist") == CLASSES
    )
    assert (CLASSES[0], CLASSES[79]) == ("T-shirt/top, right", "Ankle boot, up right")
    counts = np.bincount(clips.labels, minlength=80)
    assert counts.min() > 85 and counts.max() < 170
    assert np.array_equal(clips.labels // 8, fashion_mnist.fashion_mnist("test")[1])


def test_positions_in_a_frame_do_not_tell_the_direction(clips):
    """Every frame's corner is uniform whatever the direction, so is that of the clip reversed."""
    corners, direction = clips._corners % clips.size, clips.labels % 8
    for frame in (0, 7):
        for where in range(8):
            own = corners[direction == where, frame]
            assert np.abs(own.mean(0) - 15.5).max() < 1.0 and np.abs(own.std(0) - 9.2).max() < 0.5


def test_as_a_source_for_the_trainer(clips):
    source = MovingFashionSource(Preprocess(size=40, mean=(0.5,) * 3, std=(1.0,) * 3), frames=4)
    assert (source.size, source.val_size) == (60_000, 10_000)
    (batch,) = source.train_batches([np.array([5, 1])])
    train = MovingFashion("train", size=40, frames=4)
    assert (
        batch[0].shape == (2, 4, 40, 40, 3) and batch[1].tolist() == train.labels[[5, 1]].tolist()
    )
    assert np.array_equal(np.array(batch[0])[..., 2], train.clips(np.array([5, 1])))
    parts = [list(source.val_batches(3_000, rank, 2)) for rank in (0, 1)]
    assert all(clip.shape[0] == 3_000 for part in parts for clip, _ in part)
    labels = [np.concatenate([np.array(y) for _, y in part]) for part in parts]
    assert [part[part >= 0].tolist() for part in labels] == [
        clips.labels[0::2].tolist(), clips.labels[1::2].tolist()
    ]  # fmt: skip
    assert np.array(parts[0][1][0])[2_500:].max() == 0


def test_what_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="'size' must be 28 or more"):
        MovingFashion(size=27)
    with pytest.raises(ValueError, match="'split' must be 'train' or 'test' but got 'val'"):
        MovingFashion("val")
    monkeypatch.setattr(moving_fashion.fashion_mnist, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        MovingFashion()

"""Sliding windows, and masks of volumes of any size, spacing and orientation."""

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo.configs.record import Record
from natten_zoo.data.volumes import Volume, VolumeError
from natten_zoo.models import NAUNETR, NAUNETRConfig
from natten_zoo.tasks.sliding import blended_rows, gaussian, window_starts
from natten_zoo.tasks.volumes import prepare, scale_intensity, segment_volume

nibabel = pytest.importorskip("nibabel")


class Threshold(NAUNETR):
    """Two classes, told by the voxel itself: what windows do to it must not show."""

    def __init__(self, channels=1, level=0.0):
        super().__init__(NAUNETRConfig(8, (1,), (1,), 3, in_chans=channels, num_classes=2))
        self.sizes, self.level = [], level

    def __call__(self, x):
        self.sizes.append(x.shape[1:4])
        above = x[..., :1] - self.level
        return mx.concatenate([-above, above], axis=-1)


def volume_of(voxels, spacing=(1.0, 1.0, 1.0)):
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    image = nibabel.Nifti1Image(voxels[..., 0], np.diag([*spacing, 1.0]))
    return Volume(voxels.astype(np.float32), image)


@pytest.fixture
def voxels():
    return np.random.RandomState(0).standard_normal((20, 33, 17)).astype(np.float32)


def test_window_starts():
    for size, window, step in ((100, 40, 25), (7, 7, 3), (5, 9, 2), (31, 8, 8)):
        starts = window_starts(size, window, step)
        assert starts[0] == 0 and starts[-1] == max(0, size - window)
        assert all(0 < b - a <= step for a, b in pairwise(starts))


@pytest.mark.parametrize("weights", [np.ones, gaussian])
@pytest.mark.parametrize(
    "size, window, step",
    [((20, 9, 13), (8, 8, 8), (4, 4, 4)), ((5, 30, 7), (8, 6, 8), (3, 5, 4)), ((33,), (8,), (8,))],
)
def test_rows_are_the_weighted_mean_of_all_windows(size, window, step, weights):
    x = np.random.RandomState(0).standard_normal((*size, 2)).astype(np.float32)
    places, told = [], []

    def predict(place):
        places.append(place)
        return mx.array(x[place] * len(places))

    rows = blended_rows(predict, size, window, step, weights, lambda *n: told.append(n))
    found = np.stack(list(rows))
    weight = weights([min(pair) for pair in zip(size, window, strict=True)])[..., None]
    total, count = np.zeros_like(x), np.zeros((*size, 1))
    for index, place in enumerate(places, 1):
        total[place] += x[place] * index * weight
        count[place] += weight
    np.testing.assert_allclose(found, total / count, atol=1e-4)
    assert told == [(index, len(places)) for index in range(1, len(places) + 1)]


def test_gaussian():
    weight = gaussian([9, 8, 1])
    assert weight.shape == (9, 8, 1) and weight[4, 3, 0] == weight.max() and weight.min() == 1e-3
    assert weight[2, 4, 0] == pytest.approx(
        np.exp(-0.5 * (2 / (9 / 8)) ** 2 - 0.5 * 0.5**2), rel=1e-5
    )


@pytest.mark.parametrize("window", [8, (8, 16, 12), 64])
def test_windows_do_not_show(voxels, window):
    model = Threshold()
    result = segment_volume(model, volume_of(voxels), window=window)
    assert np.array_equal(result.mask, voxels > voxels.mean(dtype=np.float64))
    sides = (window,) * 3 if isinstance(window, int) else window
    assert set(model.sizes) == {tuple(map(min, zip(voxels.shape, sides, strict=True)))}


def test_one_window_is_the_model_itself(voxels):
    mx.random.seed(0)
    model = NAUNETR(NAUNETRConfig(8, (1, 1), (1, 2), 3, num_classes=3)).eval()
    result = segment_volume(model, volume_of(voxels))
    logits = model(mx.array(scale_intensity(voxels[..., None], None))[None])[0]
    assert np.array_equal(result.mask, mx.argmax(logits, axis=-1))
    assert len(np.unique(result.mask)) > 1


def test_memory_does_not_grow_with_the_longest_axis():
    import tracemalloc

    def peak(length):
        volume = volume_of(np.zeros((16, 16, length), np.float32))
        tracemalloc.start()
        segment_volume(Threshold(), volume, window=16)
        held = tracemalloc.get_traced_memory()[1] - 13 * volume.voxels.size
        tracemalloc.stop()
        return held

    # 8 numbers of logits for each voxel of the added 4 MB would be 64 MB.
    assert peak(4096) < peak(64) + 8e6


def test_results_lie_on_the_volumes_own_grid():
    """A ball of 40 voxels of 0.5 x 0.5 x 1.25 mm, seen by a model of 1 x 1 x 2.5 mm."""
    grid = np.meshgrid(*(np.arange(n) - n // 2 for n in (60, 50, 24)), indexing="ij")
    spacing = (0.5, 0.5, 1.25)
    distance = np.sqrt(sum((g * s) ** 2 for g, s in zip(grid, spacing, strict=True)))
    model = Threshold(level=0.5)
    model.record = Record(
        "ball", "NAUNETR", {}, input_size=16, crop_mode="volume", spacing=(1.0, 1.0, 2.5),
        intensity=(-10, 10), num_classes=2, classes=("air", "ball"),
    )  # fmt: skip
    volume = volume_of(8 - distance, spacing)
    assert prepare(volume, model.record).shape == (30, 25, 12, 1)
    result = segment_volume(model, volume)
    wrong = result.mask != (distance < 8)
    assert result.mask.shape == (60, 50, 24) and wrong.sum() < 0.05 * result.mask.sum()
    assert not wrong[np.abs(distance - 8) > 0.7].any()
    air, ball = result.classes()
    assert (air["class"], ball["class"], ball["index"]) == ("air", "ball", 1)
    assert ball["mm3"] == pytest.approx(ball["voxels"] * 0.3125, rel=1e-5)
    assert ball["mm3"] == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.05)
    assert air["share"] + ball["share"] == pytest.approx(1, abs=1e-5)


def test_intensities():
    x = np.random.RandomState(0).standard_normal((4, 5, 6, 2)).astype(np.float32) * (3, 9) + 100
    scaled = scale_intensity(x.astype(np.float32), None)
    np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1, atol=1e-5)
    assert not scale_intensity(np.full((2, 2, 2, 1), 5, np.float32), None).any()
    record = Record("ct", "NAUNETR", {}, intensity=(-175, 250))
    values = np.array([-1000, -175, 37.5, 250, 3000], np.float32).reshape(1, 1, -1, 1)
    assert scale_intensity(values, record).ravel().tolist() == [0, 0, 0.5, 1, 1]


def test_picture(voxels):
    smooth = np.cumsum(voxels, axis=0)
    result = segment_volume(Threshold(), volume_of(smooth, (1.0, 1.0, 3.0)), window=16)
    picture = np.asarray(result.picture(height=120))
    assert picture.shape[0] == 120 and picture.shape[1] > 120 * (33 / 51 + 20 / 51 + 20 / 33)
    colored = np.ptp(picture.astype(int), axis=-1) > 40
    assert 0.05 < colored.mean() < 0.95
    empty = segment_volume(Threshold(), volume_of(smooth * 0), window=16)
    assert not empty.mask.any() and empty.picture(height=50).height == 50


def test_what_is_refused(voxels):
    volume = volume_of(voxels)
    with pytest.raises(VolumeError, match="must have 2 channels, as the model expects, but has 1"):
        segment_volume(Threshold(channels=2), volume)
    with pytest.raises(ValueError, match=r"'overlap' must be in \[0, 1\) but got 1.0"):
        segment_volume(Threshold(), volume, overlap=1.0)
    for window in (0, (8, 0, 8), (8, 8)):
        with pytest.raises(ValueError, match="'window' must be a positive number or three but got"):
            segment_volume(Threshold(), volume, window=window)
    model = Threshold()
    model.reset_classifier(0)
    assert isinstance(model.head, nn.Identity)
    with pytest.raises(ValueError, match="'model' must have a classifier but has none"):
        segment_volume(model, volume)

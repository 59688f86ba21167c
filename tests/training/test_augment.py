from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.training import Recipe
from natten_zoo.training.augment import Augment, Mixer, area_boxes, erase, resample, shift_boxes
from natten_zoo.training.color import affine, jitter_color, rand_augment


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(0)


def boxes(*values: float):
    return tuple(mx.array([float(v)]) for v in values)


def pictures(batch: int = 4, side: int = 20, channels: int = 3) -> mx.array:
    return mx.random.uniform(shape=(batch, side, side, channels))


def test_resampling_the_whole_image_is_the_identity():
    image = pictures(1)
    same = resample(image, boxes(0, 0, 20, 20), 20)
    np.testing.assert_allclose(np.array(same), np.array(image), atol=1e-6)
    mirrored = resample(image, boxes(0, 0, 20, 20), 20, mirror=mx.array([True]))
    np.testing.assert_allclose(np.array(mirrored), np.array(image[:, :, ::-1]), atol=1e-6)


@pytest.mark.parametrize("size", [10, 16, 31])
def test_resampling_agrees_with_pillow(size):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 1)).astype(np.uint8)
    ours = resample(mx.array(image[None].astype(np.float32)), boxes(0, 0, 40, 30), size)
    pillow = Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(np.array(ours)[0, ..., 0] - np.asarray(pillow, np.float32)).max() <= 1


def test_a_shifted_box_is_black_outside():
    image = mx.ones((1, 8, 8, 1))
    moved = np.array(resample(image, boxes(-3, 2, 8, 8), 8))[0, ..., 0]
    assert (moved[:3] == 0).all() and (moved[3:, :6] == 1).all() and (moved[:, 6:] == 0).all()


def test_boxes_stay_inside_and_differ():
    top, left, height, width = area_boxes(256, 32, 0.2, mx.full((256,), 2.0))
    assert mx.all((top >= 0) & (left >= 0) & (top + height <= 32.001) & (left + width <= 32.001))
    area = np.array(height * width) / 32**2
    assert area.min() >= 0.199 and len(np.unique(area)) > 250
    shift = np.array(shift_boxes(512, 32, 2)[0])
    assert set(shift) == {-2, -1, 0, 1, 2}


def test_erasing_hits_its_share_of_images():
    before = mx.zeros((400, 16, 16, 1))
    changed = np.array(mx.any(erase(before, 0.25) != 0, axis=(1, 2, 3)))
    assert 0.18 < changed.mean() < 0.32


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_say_how_much_of_each_image_is_left(mixup, cutmix):
    # Image i is all i / 7, so its mean tells the share of its partner, image 7 - i.
    values = mx.arange(8) / 7
    images = mx.broadcast_to(values[:, None, None, None], (8, 32, 32, 1))
    keeps = []
    for _ in range(20):
        mixed, targets = Mixer(mixup, cutmix, 1.0)(images, mx.eye(8))
        np.testing.assert_allclose(np.array(targets.sum(-1)), 1, atol=1e-6)
        means = np.array((targets * values).sum(-1))
        np.testing.assert_allclose(np.array(mixed.mean((1, 2, 3))), means, atol=1e-4)
        keeps.append(targets[0, 0].item())
    assert len(set(keeps)) > 10


def test_mixing_a_share_of_the_batches():
    mixer = Mixer(0.8, 1.0, 0.3)
    images = pictures(2)
    mixed = [not mx.array_equal(mixer(images, mx.eye(2))[0], images) for _ in range(100)]
    assert 15 < sum(mixed) < 45
    assert mx.array_equal(Mixer(0.0, 0.0, 1.0)(images, mx.eye(2))[0], images)


def test_a_quarter_turn():
    image, zero = pictures(1), mx.zeros(1)
    turned = affine(image, zero + np.pi / 2, zero, zero)
    np.testing.assert_array_equal(np.array(turned)[0], np.rot90(np.array(image)[0]))


@pytest.mark.parametrize("channels", [1, 3])
def test_color_changes_stay_in_range_and_differ_between_images(channels):
    image = mx.broadcast_to(pictures(1, 12, channels), (16, 12, 12, channels))
    for changed in (jitter_color(image, 0.5), rand_augment(image, 0.9)):
        assert changed.shape == image.shape and changed.min() >= 0 and changed.max() <= 1
        assert len({float(x) for x in changed.sum((1, 2, 3))}) > 8


def test_the_pipeline_gives_network_input_and_soft_targets():
    recipe = Recipe(crop="resized", rand_augment=5, jitter=0.3, erase=0.3, mixup=0.2, cutmix=1.0)
    augment = Augment(recipe, 3, 16, [0.5], [0.25])
    images = mx.random.randint(0, 256, (6, 20, 20, 1)).astype(mx.uint8)
    inputs, targets = augment(images, mx.array([0, 1, 2, 0, 1, 2]), mx.ones(6))
    assert inputs.shape == (6, 16, 16, 1) and inputs.min() >= -2 and inputs.max() <= 2
    np.testing.assert_allclose(np.array(targets.sum(-1)), 1, atol=1e-6)


def test_without_augmentation_only_the_scale_changes():
    recipe = Recipe(crop="none", flip=False, smoothing=0.0)
    images = mx.random.randint(0, 256, (2, 8, 8, 3)).astype(mx.uint8)
    inputs, targets = Augment(recipe, 4, 8, [0.1, 0.2, 0.3], [1, 2, 3])(
        images, mx.array([3, 0]), mx.ones(2)
    )
    expected = (np.array(images) / 255 - [0.1, 0.2, 0.3]) / [1, 2, 3]
    np.testing.assert_allclose(np.array(inputs), expected, atol=1e-6)
    assert np.array_equal(np.array(targets), np.eye(4)[[3, 0]])

"""Masks of images of any size against their definition."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo import get_record
from natten_zoo.data import Preprocess
from natten_zoo.data.labels import class_colors
from natten_zoo.layers.resize import resize_bilinear
from natten_zoo.models import UPerNet, UPerNetConfig
from natten_zoo.tasks.segmentation import _slide, segment
from natten_zoo.tasks.sliding import window_starts

BODY = {
    "architecture": "DiNAT",
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "kernel_size": 3,
    "dilations": [[2], [1, 3]],
}


def small(**changes):
    mx.random.seed(0)
    values = {"backbone": BODY, "channels": 8, "aux_channels": 4, "num_classes": 5, **changes}
    return UPerNet(UPerNetConfig.from_dict(values)).eval()


def test_images_are_resized_as_mmsegmentation_does():
    prepare = Preprocess.from_record(get_record("upernet_nat_mini"))
    assert prepare.fit((480, 640)) == (512, 683)
    assert prepare.fit((100, 4000)) == (51, 2048)
    assert prepare.fit((3, 2), 0.75) == (576, 384)
    assert prepare(np.zeros((480, 640, 3), np.uint8)).shape == (512, 683, 3)
    assert window_starts(512, 512, 341) == [0] and window_starts(100, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1100, 512, 341) == [0, 341, 588]


@pytest.fixture(scope="module")
def photo():
    image = np.random.RandomState(0).randint(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(image).resize((45, 30), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model():
    result = small()
    result.record = get_record("upernet_nat_mini").for_classes(5)
    object.__setattr__(result.record, "input_size", 48)
    return result


def whole_mask(model, photo, side, flip=False):
    """The class of each pixel by the definition: resize, logits, resize twice, softmax, mean."""
    record = model.record
    x = (np.asarray(photo, np.float32) / 255 - record.mean) / record.std
    probabilities = 0
    for factor in side if isinstance(side, tuple) else (side,):
        size = factor, round(factor * 1.5)
        resized = resize_bilinear(mx.array(x[None].astype(np.float32)), size)
        for step in (1, -1) if flip else (1,):
            logits = model(resized[:, :, ::step])[:, :, ::step]
            probabilities += mx.softmax(resize_bilinear(logits, (30, 45)), axis=-1)
    return np.array(probabilities.argmax(-1)[0])


def test_segment(model, photo, monkeypatch):
    expected = whole_mask(model, photo, 48)
    assert len(np.unique(expected)) > 1
    found = segment(model, photo)
    assert np.array_equal(found.mask, expected)
    monkeypatch.setattr("natten_zoo.tasks.segmentation._BAND", 3000)  # a few rows at a time
    assert np.array_equal(segment(model, photo).mask, expected)
    assert sum(entry["pixels"] for entry in found.classes()) == 30 * 45
    assert [e["share"] for e in found.classes()] == sorted(
        (e["share"] for e in found.classes()), reverse=True
    )


def test_scales_and_mirror_images(model, photo):
    expected = whole_mask(model, photo, (24, 72), flip=True)
    assert np.array_equal(segment(model, photo, scales=(0.5, 1.5), flip=True).mask, expected)
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(
        segment(model, mirrored, flip=True).mask[:, ::-1], segment(model, photo, flip=True).mask
    )
    for scales in ((), (0.0,), (-1.0,), (float("nan"),)):
        with pytest.raises(ValueError, match="'scales' must be positive numbers"):
            segment(model, photo, scales=scales)


def test_sliding_window(model, photo):
    x = mx.array((np.asarray(photo, np.float32) / 255 - model.record.mean) / model.record.std)
    x = resize_bilinear(x[None].astype(mx.float32), (48, 72))
    left, right = model(x[:, :, :48]), model(x[:, :, 24:])
    middle = (left[:, :, 24:] + right[:, :, :24]) / 2
    logits = mx.concatenate([left[:, :, :24], middle, right[:, :, 24:]], axis=2)
    np.testing.assert_allclose(_slide(model, x, 48), logits, atol=1e-6)
    expected = np.array(resize_bilinear(logits, (30, 45)).argmax(-1)[0])
    assert np.array_equal(segment(model, photo, sliding_window=True).mask, expected)
    square = photo.resize((48, 48))
    whole, slid = segment(model, square), segment(model, square, sliding_window=True)
    assert np.array_equal(whole.mask, slid.mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 3)])
def test_images_of_any_shape(model, size):
    result = segment(model, np.full((*size, 3), 99, np.uint8), scales=(0.25,))
    assert result.mask.shape == size
    assert result.overlay().height == size[0]


def test_overlay_and_mask_show_the_colors(model, photo):
    result = segment(model, photo)
    mask = result.mask_image()
    assert np.array_equal(np.asarray(mask), result.mask)
    colors = np.array(class_colors(None, 5))[result.mask]
    assert np.array_equal(np.asarray(mask.convert("RGB")), colors)
    assert np.array_equal(np.asarray(result.overlay(1.0))[:, :45], colors)
    assert np.array_equal(np.asarray(result.overlay(0.0))[:, :45], np.asarray(photo))

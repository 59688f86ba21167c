"""The transform against an independent bicubic resize and against torchvision's two steps."""

import math

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo import get_record
from natten_zoo.configs.record import Record
from natten_zoo.data import Preprocess
from natten_zoo.data.preprocess import in_words
from natten_zoo.tasks import task_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height, width, channels=3, seed=0):
    """Smooth gradients with texture: what a resize gets wrong shows."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, channels))
    y, x = np.mgrid[:height, :width]
    waves = 90 + 50 * np.sin(x / 7)[:, :, None] + 50 * np.cos(y / 11)[:, :, None]
    return (waves + noise).clip(0, 255).astype(np.uint8)


def cubic(x):
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_matrix(length, result):
    """Weights `[result, length]` of an antialiased bicubic resize, by its definition."""
    scale = length / result
    wide = max(scale, 1.0)
    centers = (np.arange(result) + 0.5) * scale
    distance = (np.arange(length) + 0.5)[None] - centers[:, None]
    weights = cubic(distance / wide)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(pixels, size, crop_pct, axes):
    """Resize the short side, round to 8 bits after each axis, crop, normalize; in float64."""
    short = math.floor(size / crop_pct)
    x = pixels.astype(np.float64)
    for axis in axes:
        length = pixels.shape[axis]
        result = int(short * length / min(pixels.shape[:2]))
        weights = resize_matrix(length, result)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis).round().clip(0, 255)
        first = round((result - size) / 2)
        x = np.take(x, range(first, first + size), axis)
    return (x / 255 - MEAN) / STD


@pytest.mark.parametrize(
    ("height", "width", "size", "crop_pct"),
    [
        (300, 400, 224, 0.875),
        (411, 257, 224, 0.875),
        (500, 333, 384, 1.0),
        (60, 90, 224, 0.875),
        (97, 97, 28, 1.0),
    ],
)
def test_equals_an_independent_float64_resize(height, width, size, crop_pct):
    pixels = photo(height, width)
    result = np.array(Preprocess(size=size, crop_pct=crop_pct)(pixels))
    level = 1 / 255 / min(STD)
    # Which axis comes first changes roundings; newer Pillow chooses the quicker order.
    orders = [np.abs(result - reference(pixels, size, crop_pct, axes)) for axes in ((1, 0), (0, 1))]
    error = min(orders, key=np.max)
    assert error.max() < 1.01 * level  # Pillow's fixed-point weights may round the other way
    assert (error > 1e-5).mean() < 1e-3


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize(("height", "width"), [(480, 641), (641, 480), (411, 257), (256, 256)])
def test_equals_torchvision_step_by_step(height, width, crop_pct):
    """`Resize(floor(size / crop_pct))` and `CenterCrop(size)` on a Pillow image."""
    image = Image.fromarray(photo(height, width))
    short = math.floor(224 / crop_pct)
    if width <= height:
        new = (short, int(short * height / width))
    else:
        new = (int(short * width / height), short)
    whole = image.resize(new, Image.Resampling.BICUBIC)
    top, left = round((new[1] - 224) / 2.0), round((new[0] - 224) / 2.0)
    expected = whole.crop((left, top, left + 224, top + 224))
    result = Preprocess(crop_pct=crop_pct).crop(image)
    assert np.array_equal(np.asarray(result), np.asarray(expected))


def test_squash_sees_the_whole_image():
    pixels = photo(100, 300)
    squashed = Preprocess(crop_mode="squash").crop(Image.fromarray(pixels))
    expected = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(squashed), np.asarray(expected))
    stripe = np.zeros((100, 300, 3), np.uint8)
    stripe[:, :50] = 255  # outside of a center crop
    assert np.array(Preprocess(crop_mode="squash")(stripe)).max() > 2
    assert np.array(Preprocess()(stripe)).max() < 0


def test_normalises_each_channel():
    result = np.array(Preprocess()(np.full((50, 50, 3), 255, np.uint8)))
    assert result.dtype == np.float32
    assert np.allclose(result, (1 - np.array(MEAN)) / STD, atol=1e-6)


def test_gray_model():
    gray = Preprocess(size=28, crop_pct=1.0, mean=(0.25,), std=(0.5,))
    pixels = photo(28, 28, 1)
    same = np.array(gray(pixels))
    assert np.allclose(same, (pixels / 255 - 0.25) / 0.5, atol=1e-6)  # 28 x 28 stays as it is
    red = np.zeros((56, 56, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert np.allclose(np.array(gray(red)), (76 / 255 - 0.25) / 0.5, atol=1e-6)  # Rec. 601: 0.299


@pytest.mark.parametrize(("height", "width"), [(1, 10_000), (10_000, 1), (1, 1), (7, 3)])
def test_odd_shapes(height, width):
    assert Preprocess()(photo(height, width)).shape == (224, 224, 3)


def test_returns_an_mlx_array():
    assert isinstance(Preprocess()(photo(30, 30)), mx.array)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(size=384, crop_pct=1.0),
        Preprocess(crop_mode="squash", crop_pct=1.0),
        Preprocess(size=28, crop_pct=1.0, interpolation="bilinear", mean=(0.3,), std=(0.4,)),
        Preprocess(size=224, crop_pct=0.9),
        Preprocess(size=512, crop_pct=1.0, crop_mode="whole", interpolation="bilinear"),
    ],
)
def test_config_round_trip(preprocess):
    assert Preprocess.from_config(preprocess.to_config()) == preprocess


def test_reads_hugging_face_configs():
    base = {"image_mean": list(MEAN), "image_std": list(STD), "resample": 3}
    new = Preprocess.from_config(base | {"size": {"height": 224, "width": 224}})
    old = Preprocess.from_config(base | {"size": 224})  # ViTFeatureExtractor
    assert new == old == Preprocess(crop_mode="squash", crop_pct=1.0)
    crop = {"do_center_crop": True, "size": {"shortest_edge": 256}}
    crop["crop_size"] = {"height": 224, "width": 224}
    assert Preprocess.from_config(base | crop) == Preprocess()


@pytest.mark.parametrize(
    "change",
    [
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"height": 224, "width": 192}},
        {"size": {"shortest_edge": 224}},
        {"do_normalize": False},
        {"resample": 4},
    ],
)
def test_refuses_configs_that_ask_for_something_else(change):
    config = Preprocess(crop_mode="squash").to_config() | change
    with pytest.raises(ValueError, match=r"\[Preprocess\]"):
        Preprocess.from_config(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("crop_pct", 0.0),
        ("crop_pct", 1.5),
        ("crop_mode", "middle"),
        ("interpolation", "magic"),
        ("mean", (0.5, 0.5)),
        ("std", (0.5, 0.5, 0.0)),
    ],
)
def test_refuses_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"\[Preprocess\].*'{name}'"):
        Preprocess(**{name: value})


def test_from_record():
    record = Record(
        name="x",
        architecture="NAT",
        model={},
        input_size=28,
        crop_pct=1.0,
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.3,),
        std=(0.4,),
    )
    expected = Preprocess(28, 1.0, "squash", "bilinear", (0.3,), (0.4,))
    assert Preprocess.from_record(record) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinat_mini", "resize the short side to 256 (bicubic), crop the center 224 x 224, divide"),
        ("upernet_nat_mini", "resize the short side to 512 (bilinear), divide by 255, subtract"),
        ("nat1d_mnist1d", "subtract [0.0], divide by [1.0]"),
        ("na_unetr_base", "subtract each volume's mean, divide by its standard deviation; windows"),
        ("na_unetr_btcv", "resample to [1.5, 1.5, 2.0] mm, clip to [-175, 250], scale to 0..1; "),
    ],
)
def test_in_words(name, words):
    record = get_record(name)
    assert in_words(record, task_of(record)).startswith(words)

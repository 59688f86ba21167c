"""Clips in the trainer: augmented as one, and a direction learned that single frames don't show."""

from __future__ import annotations

import gzip

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.data import fashion_mnist
from natten_zoo.data.moving_fashion import DIRECTIONS, MovingFashionSource
from natten_zoo.models import NAT3D
from natten_zoo.training import Recipe, run
from natten_zoo.training.augment import Augment

CLIP = {"embed_dim": 16, "depths": [1], "num_heads": [1], "mlp_ratio": 1.0}


@pytest.fixture
def discs(tmp_path, monkeypatch):
    """Fashion-MNIST's files with 1,280 and 128 discs of one class in the place of clothes."""
    rng = np.random.default_rng(0)
    distance = np.hypot(*np.mgrid[-13.5:14, -13.5:14])
    for name, count in (("train", 1_280), ("t10k", 128)):
        radius = rng.uniform(4, 12, (count, 1, 1))
        images = (255 * np.clip(radius - distance, 0, 1)).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", np.zeros(count, np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            path = tmp_path / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes(), 1))
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path)
    monkeypatch.setattr(MovingFashionSource, "classes", tuple(DIRECTIONS))


def recipe(out, **options) -> Recipe:
    values = {"epochs": 5, "batch_size": 16, "compile": "no", "lr": 5e-3, "image_size": 28}
    off = {"erase": 0.0, "mix_prob": 0.0, "smoothing": 0.0, "ema_decay": 0.0, "log_every": 5}
    return Recipe.load("nat3d_moving_fashion", {"out": str(out), **values, **off, **options})


@pytest.mark.slow
def test_a_run_learns_directions_and_single_frames_do_not_show_them(discs, tmp_path):
    windows = {"kernel_size": [3, 3, 3]}
    result = run(recipe(tmp_path / "clips", model_args={**CLIP, **windows}))
    assert result["val_accuracy"] > 0.8
    model = NAT3D.from_pretrained(tmp_path / "clips" / "last")
    assert model.record.frames == 8 and model.record.classes == tuple(DIRECTIONS)
    windows = Recipe.load("frames_moving_fashion").model_args
    result = run(recipe(tmp_path / "frames", model_args={**CLIP, **windows}))
    assert result["val_accuracy"] <= 0.5


def test_all_frames_of_a_clip_are_changed_alike():
    mx.random.seed(0)
    options = Recipe(crop="resized", flip=True, mixup=0.5, cutmix=1.0, smoothing=0.0)
    still = mx.random.randint(0, 256, (6, 1, 20, 20, 3)).astype(mx.uint8)
    clips = mx.broadcast_to(still, (6, 4, 20, 20, 3))
    augment = Augment(options, 3, 16, [0.1, 0.5, 0.9], [1.0, 2.0, 3.0])
    inputs, targets = augment(clips, mx.array([0, 1, 2, 0, 1, 2]), mx.ones(6))
    assert inputs.shape == (6, 4, 16, 16, 3) and targets.shape == (6, 3)
    # But for what a product of matrices rounds from column to column.
    assert mx.allclose(inputs, mx.broadcast_to(inputs[:, :1], inputs.shape), atol=1e-5)


def test_clips_keep_the_order_of_frames_and_channels():
    clips = mx.random.randint(0, 256, (2, 4, 8, 8, 3)).astype(mx.uint8)
    plain = Recipe(crop="none", flip=False, smoothing=0.0)
    inputs, _ = Augment(plain, 2, 8, [0.1, 0.2, 0.3], [1, 2, 3])(
        clips, mx.array([0, 1]), mx.ones(2)
    )
    expected = (np.array(clips) / 255 - [0.1, 0.2, 0.3]) / [1, 2, 3]
    np.testing.assert_allclose(np.array(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("option", [{"jitter": 0.1}, {"rand_augment": 1}])
def test_changes_of_color_are_refused_for_clips(option):
    augment = Augment(Recipe(**option), 2, 8, [0.5], [1.0])
    with pytest.raises(ValueError, match="'jitter' and 'rand_augment' must be 0 for clips"):
        augment(mx.zeros((2, 4, 8, 8, 1), mx.uint8), mx.array([0, 1]), mx.ones(2))


def test_what_moving_fashion_needs(tmp_path):
    with pytest.raises(ValueError, match="needs a model of clips, and 'flip' must be off"):
        run(recipe(tmp_path, flip=True))
    with pytest.raises(ValueError, match=r"a model of images learns from .* and 'moving"):
        run(recipe(tmp_path, model="nat_mini"))

"""The models that ship in the package are what their records say."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import natten_zoo
from natten_zoo.data import Preprocess, SequencePreprocess
from natten_zoo.data.arrays import fit_images
from natten_zoo.data.fashion_mnist import FOLDER, fashion_mnist
from natten_zoo.data.mnist1d import mnist1d
from natten_zoo.training import Recipe

ASSETS = Path(natten_zoo.__file__).parent / "assets"
ASSET = ASSETS / "nat_pico_fashion"


def accuracy(count: int) -> float:
    model = natten_zoo.create_model("nat_pico_fashion", pretrained=True)
    preprocess = Preprocess.from_record(model.record)
    images, labels = (a[:count] for a in fashion_mnist("test"))
    pixels = fit_images(images, preprocess).astype(np.float32) / 255
    right = 0
    for start in range(0, count, 250):
        x = mx.array((pixels[start : start + 250] - preprocess.mean) / preprocess.std)
        right += int((np.array(model(x).argmax(-1)) == labels[start : start + 250]).sum())
    return right / count


def test_it_is_small_and_says_how_it_was_trained():
    config = json.loads((ASSET / "config.json").read_text())
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 2 * 2**20
    weights = mx.load(str(ASSET / "model.safetensors"))
    assert sum(value.size for value in weights.values()) <= 1_000_000
    training, recipe = config["training"], Recipe.load("nat_pico_fashion")
    assert (training["seed"], training["epochs"]) == (recipe.seed, recipe.epochs)
    assert training["updates"] == recipe.epochs * (60_000 // recipe.batch_size)
    top1 = natten_zoo.get_record("nat_pico_fashion").top1
    assert 100 * training["test_accuracy"] == pytest.approx(top1) and top1 >= 92


@pytest.mark.skipif(not FOLDER.exists(), reason="needs dataset-fashion-mnist")
def test_it_tells_clothes_apart():
    assert accuracy(500) >= 0.92


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.exists(), reason="needs dataset-fashion-mnist")
def test_its_accuracy_is_the_recorded_one():
    top1 = natten_zoo.get_record("nat_pico_fashion").top1
    assert 100 * accuracy(10_000) == pytest.approx(top1, abs=0.03)


def test_the_model_of_sequences_says_how_it_was_trained():
    folder = ASSETS / "nat1d_mnist1d"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2**18
    training = json.loads((folder / "config.json").read_text())["training"]
    recipe = Recipe.load("nat1d_mnist1d")
    assert (training["seed"], training["epochs"]) == (recipe.seed, recipe.epochs)
    assert training["updates"] == recipe.epochs * (200_000 // recipe.batch_size)
    top1 = natten_zoo.get_record("nat1d_mnist1d").top1
    assert 100 * training["test_accuracy"] == pytest.approx(top1) and top1 >= 98.5


def test_it_reads_the_standard_test_samples():
    model = natten_zoo.create_model("nat1d_mnist1d", pretrained=True)
    curves, labels = mnist1d("test")
    prepare = SequencePreprocess.from_record(model.record)
    answers = np.array(model(mx.stack([prepare(curve) for curve in curves])).argmax(-1))
    assert 100 * (answers == labels).mean() == pytest.approx(model.record.top1, abs=0.11)

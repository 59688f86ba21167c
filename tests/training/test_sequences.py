"""A model of sequences through the same trainer, and the one that ships in the package."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.cli import main
from natten_zoo.training import Recipe, run
from natten_zoo.training.augment import SequenceAugment


def recipe(**options) -> Recipe:
    plain = {"crop": "none", "flip": False, "model": "nat1d_mnist1d", "pretrained": False}
    return Recipe.from_dict({**plain, "data": "mnist1d", "compile": "no", **options})


def test_a_run_learns_and_evaluate_agrees(tmp_path, capsys):
    tiny = {"embed_dim": 16, "num_heads": 2, "dilations": [1, 2]}
    result = run(recipe(model_args=tiny, out=str(tmp_path / "run"), epochs=1, batch_size=50,
                        lr=5e-3, warmup_epochs=0.1, mixup=0.1))  # fmt: skip
    assert result["outcome"] == "finished" and result["val_accuracy"] > 0.2
    last = str(tmp_path / "run" / "last")
    assert main(["evaluate", "mnist1d", "--model", last, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 1000
    assert figures["top1"] / 100 == pytest.approx(result["val_accuracy"], abs=0.002)
    assert [row["class"] for row in figures["classes"]] == list("0123456789")


def test_models_and_data_must_go_together(tmp_path):
    with pytest.raises(ValueError, match="a model of sequences learns from mnist1d or"):
        run(recipe(data="fashion_mnist", out=str(tmp_path / "a")))
    with pytest.raises(ValueError, match="but got 'nat_mini' and 'mnist1d'"):
        run(recipe(model="nat_mini", out=str(tmp_path / "b")))
    assert main(["evaluate", "mnist1d", "--model", "nat_pico_fashion"]) == 2


def test_what_is_for_images_is_refused():
    with pytest.raises(ValueError, match="needs crop none, flip False, jitter 0"):
        SequenceAugment(Recipe(jitter=0.5), 10, [0.0], [1.0])
    augment = SequenceAugment(recipe(mixup=0.5, smoothing=0.1), 10, [1.0], [2.0])
    sequences = mx.random.normal((6, 40, 1))
    inputs, targets = augment(sequences, mx.arange(6), mx.ones(6))
    assert inputs.shape == (6, 40, 1)
    np.testing.assert_allclose(np.array(targets.sum(-1)), 1, atol=1e-6)
    assert mx.allclose(augment.prepare(sequences), (sequences - 1) / 2)

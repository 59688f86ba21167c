"""Whole runs on tiny data, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import yaml
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.data.arrays import ArraySource
from natten_zoo.data.reading import ImageError
from natten_zoo.data.stream import scan_images
from natten_zoo.pretrained.load import load_pretrained
from natten_zoo.training import Recipe, run
from natten_zoo.training.loop import Trainer
from natten_zoo.training.progress import read_metrics
from tests.training.runs import TINY, write_images


def test_a_run_learns_and_leaves_models_metrics_curve_and_recipe(recipe, capsys):
    wanted = recipe(epochs=8, ema_decay=0.9)
    result = run(wanted)
    out = Path(wanted.out)
    assert result["outcome"] == "finished" and result["best_val_accuracy"] == 1
    assert yaml.safe_load((out / "recipe.yaml").read_text())["lr"] == 5e-3
    losses = [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 24 and np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert Image.open(out / "curve.png").size[0] > 500
    for name in ("last", "best"):
        model = load_pretrained(None, out / name)
        assert model.record.classes == ("blue", "green", "red")
        assert model.config.num_classes == 3 and model.record.input_size == 16
    assert json.loads((out / "best" / "config.json").read_text())["training"]["val_accuracy"] == 1
    assert "24 images to train on, 6 to validate on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["finetune", "linear_probe", "lora", "from_scratch"])
def test_every_recipe_of_the_library_trains(recipe, flowers, name):
    changes = {"model_args": TINY, "image_size": 16, "epochs": 1, "batch_size": 8, "lora_rank": 2}
    options = {**changes, "data": str(flowers), "out": recipe().out, "compile": "no"}
    result = run(Recipe.load(name, {**options, "pretrained": False, "log_every": 1}))
    assert result["outcome"] == "finished" and result["step"] == 3
    lines = read_metrics(Path(recipe().out, "metrics.jsonl"))
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_a_head_that_does_not_fit_is_replaced_aloud(recipe, tmp_path, capsys):
    run(recipe(epochs=6))
    first = Path(recipe().out) / "best"
    options = {"model": str(first), "model_args": {}, "image_size": None, "pretrained": True}
    run(recipe(out=str(tmp_path / "same"), **options))
    assert "is replaced" not in capsys.readouterr().err
    other = write_images(tmp_path / "two", 6, {"black": (10, 10, 10), "white": (240, 240, 240)})
    run(recipe(data=str(other), out=str(tmp_path / "other"), **options))
    text = capsys.readouterr().err
    assert "head for 3 classes (others) is replaced by a fresh one for 2: black, white" in text
    assert load_pretrained(None, tmp_path / "other" / "last").config.num_classes == 2


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_few_weights_learn_and_the_model_that_is_saved_is_plain(recipe, tmp_path, tune):
    run(recipe(epochs=2))
    first = Path(recipe().out) / "last"
    before = dict(mx.load(str(first / "model.safetensors")))
    run(recipe(model=str(first), model_args={}, image_size=None, pretrained=True, tune=tune,
               lora_rank=2, out=str(tmp_path / "tuned"), lr=0.05))  # fmt: skip
    after = mx.load(str(tmp_path / "tuned" / "last" / "model.safetensors"))
    assert after.keys() == before.keys()
    changed = {n.rpartition(".")[0] for n in after if not mx.array_equal(after[n], before[n])}
    assert "head" in changed and not any("norm" in n or "patch_embed" in n for n in changed)
    assert (tune == "lora") == any(name.endswith("qkv") for name in changed)


def test_without_validation_the_last_model_is_the_best_and_nothing_is_claimed(recipe):
    wanted = recipe(val_fraction=0.0)
    last, best = (Path(wanted.out, name) for name in ("last", "best"))
    assert run(dataclasses.replace(wanted, max_minutes=1e-9))["outcome"].startswith("stopped")
    assert last.exists() and not best.exists()
    result = run(wanted)
    assert result["outcome"] == "finished" and not any("val" in name for name in result)
    assert "val_accuracy" not in json.loads((best / "config.json").read_text())["training"]
    weights = "model.safetensors"
    assert (best / weights).read_bytes() == (last / weights).read_bytes()


def test_an_accuracy_of_zero_is_measured_too(recipe, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (0.0, {"loss": 1.0}))
    assert run(recipe())["best_val_accuracy"] == 0
    training = json.loads(Path(recipe().out, "best", "config.json").read_text())["training"]
    assert training["val_accuracy"] == 0 and training["step"] == 3  # the first of equals


def test_batches_that_processes_cannot_share():
    from natten_zoo.training.rows import check_batches

    with pytest.raises(ValueError, match=r"a multiple of processes x accumulate, 2 x 2, .* got 6"):
        check_batches(Recipe(batch_size=6, accumulate=2), 100, 2)
    check_batches(Recipe(batch_size=8, accumulate=2), 100, 2)


def test_formats_that_the_loader_reads_wrongly_are_converted(recipe, flowers, tmp_path):
    data = tmp_path / "odd"
    shutil.copytree(flowers, data)
    red = Image.new("RGB", (24, 20), "red")
    red.convert("L").save(data / "red" / "gray.png")
    red.save(data / "red" / "web.webp")
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(data / "red" / "turned.jpg", exif=exif)
    assert run(recipe(data=str(data)))["outcome"] == "finished"
    assert len(list(Path(recipe().out, "converted").glob("*.png"))) == 3


def test_what_validation_would_see_otherwise_is_converted(tmp_path, monkeypatch):
    """A color that stands for nothing, and a JPEG that is read at a part of its size."""
    red = Image.new("RGB", (24, 20), "red")
    red.save(tmp_path / "clear.png", transparency=(255, 0, 0))
    red.resize((600, 400)).save(tmp_path / "huge.jpg")
    red.save(tmp_path / "plain.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 4)
    monkeypatch.setattr("natten_zoo.data.reading.DRAFT_SIZE", 100)
    files = [tmp_path / name for name in ("clear.png", "huge.jpg", "plain.png")]
    clear, huge, plain = scan_images(files, tmp_path / "converted", 1)
    assert plain.file == files[2]
    assert np.asarray(Image.open(clear.file)).min() == 255  # white, as for validation
    assert Image.open(huge.file).size == (150, 100) and huge.aspect == 1.5


def test_bad_data_is_said_before_training(recipe, flowers, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(flowers, data)
    (data / "red" / "0.png").write_bytes(b"no image")
    (data / "green" / "cut.jpg").write_bytes((data / "green" / "1.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"2 of 31 images can't be read") as error:
        run(recipe(data=str(data)))
    assert "red/0.png" in str(error.value) and "green/cut.jpg" in str(error.value)
    (data / "empty").mkdir()
    with pytest.raises(ValueError, match="no images of empty"):
        run(recipe(data=str(data)))
    one = write_images(tmp_path / "one", 3, {"red": (255, 0, 0)})
    with pytest.raises(ValueError, match="must have at least two classes but has red"):
        run(recipe(data=str(one)))
    with pytest.raises(ValueError, match="at most the number of training images, 24, but got 25"):
        run(recipe(batch_size=25))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        run(recipe(data=str(tmp_path / "nothing")))


def test_a_run_inside_its_data_is_refused(recipe, flowers, tmp_path):
    """It would be a class of the next one; beside a split of the data's own it is none."""
    shutil.copytree(flowers, tmp_path / "a")
    shutil.copytree(flowers, tmp_path / "b" / "train")
    for data, out in (("a", "a/run"), ("a", "a/red/run"), ("b", "b/train/run")):
        with pytest.raises(ValueError, match="'out' must lie outside of the data"):
            run(recipe(data=str(tmp_path / data), out=str(tmp_path / out)))
        assert not (tmp_path / out).exists()
    assert run(recipe(data=str(tmp_path / "b"), out=str(tmp_path / "b" / "run")))["step"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_state(recipe):
    options = {"optimizer": "sgd", "epochs": 40, "clip_norm": 0.0, "save_every": 1}
    with pytest.raises(
        ValueError, match=r"the loss became .* near update \d+, its gradient (nan|inf)"
    ) as error:
        run(recipe(lr=1e25, **options))
    assert "last good state" in str(error.value)
    assert int(str(error.value).split("update ")[1].split(",")[0]) >= 1
    last = Path(recipe().out) / "last"
    if last.exists():
        weights = mx.load(str(last / "model.safetensors")).values()
        assert all(mx.all(mx.isfinite(value)) for value in weights)


def test_batches_cover_an_epoch_once_and_orders_differ(recipe):
    from natten_zoo.training.rows import epoch_rows

    first, second = (epoch_rows(recipe(), epoch, 26, 0, 1) for epoch in (0, 1))
    assert first.shape == (3, 8) and len(np.unique(first)) == 24
    assert not np.array_equal(first, second)
    halves = [epoch_rows(recipe(), 0, 26, rank, 2) for rank in (0, 1)]
    assert np.array_equal(np.concatenate(halves, axis=1), first)


def test_arrays_give_the_rows_that_are_asked_for():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    source = ArraySource((images, np.arange(5)), (images, np.arange(5)), tuple("abcde"))
    (pixels, labels, _), *_ = source.train_batches([np.array([3, 1])])
    assert pixels.flatten().tolist() == labels.tolist() == [3, 1]
    batches = list(source.val_batches(2, rank=1, world=2))
    assert [labels.tolist() for _, labels in batches] == [[1, 3]]
    assert [labels.tolist() for _, labels in source.val_batches(3)] == [[0, 1, 2], [3, 4, -1]]


def test_the_command(recipe, flowers, tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(recipe(out="").to_yaml())
    command = ["finetune", str(flowers), "-c", str(path), "--out", str(tmp_path / "run")]
    assert main([*command, "--max-minutes", "1e-9"]) == 1
    assert "outcome=stopped after" in capsys.readouterr().out
    assert main(command) == 0
    assert "outcome=finished" in capsys.readouterr().out
    assert main([*command, "--lr", "1"]) == 2
    assert "holds a run of another recipe (lr 0.005 -> 1.0)" in capsys.readouterr().err

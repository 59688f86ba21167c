"""Training on images with masks: crops, losses, whole runs, and that a resumed run is the same."""

from __future__ import annotations

import dataclasses
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from PIL import Image

from natten_zoo import create_model
from natten_zoo.cli import main
from natten_zoo.data.preprocess import Preprocess
from natten_zoo.data.scenes import IGNORE, Scene, Scenes
from natten_zoo.models import Mask2Former, UPerNet, load_pretrained
from natten_zoo.tasks import segment
from natten_zoo.training import Recipe, run
from natten_zoo.training.launch import make_trainer
from natten_zoo.training.scenes import (
    SceneSource,
    mask_targets,
    pixel_entropy,
    share_right,
)
from tests.training.runs import COLORS
from tests.training.scenes import TEXTURES, quarters, textures, write_scenes

BODY = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3, "mlp_ratio": 1.0}
HEADS = {"channels": 16, "aux_channels": 8, "head_drop_rate": 0.0}
QUERIES = {
    "backbone": {**BODY, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]},
    **{"channels": 32, "mask_channels": 32, "num_heads": 2, "pixel_depth": 1, "pixel_hidden": 32},
    **{"depth": 2, "hidden": 32, "num_queries": 6},
}
MASK2FORMER = {"model": "mask2former_dinat_large_ade20k_semantic", "model_args": QUERIES}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Three colors in four fields, of many sizes."""
    folder = tmp_path_factory.mktemp("fields")
    return write_scenes(folder, quarters, {"train": 32, "val": 8}, COLORS)


@pytest.fixture
def recipe(fields, tmp_path):
    def make(**options):
        values = {
            "data": str(fields),
            "task": "semantic",
            "model": "nat_mini",
            "model_args": {**BODY, **HEADS},
            "pretrained": False,
            "image_size": 32,
            "out": str(tmp_path / "run"),
            "epochs": 1,
            "batch_size": 8,
            "lr": 2e-2,
            "warmup_epochs": 0.0,
            "scales": [0.75, 1.5],
            "smoothing": 0.0,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "workers": 2,
            "log_every": 1,
            "compile": "no",
        }
        return Recipe.from_dict({**values, **options})

    return make


def source_of(tmp_path, pixels, mask, **options):
    """A source of one image."""
    scene = Scene(tmp_path / "image.png", tmp_path / "mask.png")
    Image.fromarray(pixels).save(scene.image)
    Image.fromarray(mask).save(scene.mask)
    scenes = Scenes(("a", "b"), (scene,), (), False, {}, True)
    recipe = Recipe(**{"workers": 1, **options})
    return SceneSource(scenes, Preprocess(size=32, crop_mode="whole"), recipe)


def crops(source, count=12):
    for _ in range(count):
        images, masks, _ = next(source.train_batches([np.array([0])]))
        yield np.array(images[0]).astype(int), np.array(masks[0])


@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.4, 0.8], [1.0, 3.0]])
@pytest.mark.parametrize("size", [(40, 64), (90, 33), (200, 300)])
def test_image_and_mask_move_together(tmp_path, scales, size):
    """Half is red and the mask says so: in every crop, but for what the border blurs."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (y * size[1] + x * size[0] > size[0] * size[1]).astype(np.uint8)
    pixels = np.where(mask[..., None], [220, 20, 20], [20, 20, 220]).astype(np.uint8)
    mx.random.seed(0)
    kinds = set()
    for image, labels in crops(source_of(tmp_path, pixels, mask, scales=scales)):
        known = labels != IGNORE
        assert ((image[..., 0] > image[..., 2]) == (labels == 1))[known].mean() > 0.95
        outside = np.round(255 * np.array(Preprocess().mean))
        assert (image[~known] == outside).all()
        assert known.all() == (scales[0] >= 1)
        kinds.add(labels.tobytes())
    assert len(kinds) > 6


def test_without_a_crop_the_center_is_seen(tmp_path):
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 16:48] = 1
    pixels = np.repeat(mask[..., None] * np.uint8(200), 3, axis=-1)
    for image, labels in crops(source_of(tmp_path, pixels, mask, crop="none", flip=False), 2):
        assert (labels == 1).all() and (image == 200).all()


def test_half_are_mirrored(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 20:] = 1
    pixels = np.repeat(mask[..., None] * np.uint8(200), 3, axis=-1)
    source = source_of(tmp_path, pixels, mask, scales=[1.0, 1.0])
    mirrored = [bool(labels[0, 0]) for _, labels in crops(source, 30)]
    assert 5 < sum(mirrored) < 25


def test_entropy_counts_pixels_of_a_class_alone():
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 5, 4, 3))
    labels = random.choice([0, 1, 2, IGNORE], (2, 5, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    known = labels != IGNORE
    right = np.take_along_axis(p, np.where(known, labels, 0)[..., None], -1)[..., 0]
    loss = pixel_entropy(mx.array(logits), mx.array(labels))
    assert loss.item() == pytest.approx(-np.log(right[known]).mean(), rel=1e-5)
    share = share_right(mx.array(logits), mx.array(labels))
    assert share.item() == pytest.approx((logits.argmax(-1) == labels)[known].mean())
    nothing = mx.full((2, 5, 4), IGNORE)
    gradient = mx.grad(lambda x: pixel_entropy(x, nothing))(mx.array(logits))
    assert pixel_entropy(mx.array(logits), nothing).item() == 0 and not mx.any(gradient).item()


def test_targets_are_a_mask_for_each_class():
    labels = mx.array([[2, 2, IGNORE], [0, 2, 0]])
    targets = mask_targets(labels)
    assert targets.labels.tolist() == [0, 2]
    assert targets.masks.astype(mx.int32).tolist() == [
        [[0, 0, 0], [1, 0, 1]],
        [[1, 1, 0], [0, 1, 0]],
    ]
    assert mask_targets(mx.full((2, 2), IGNORE)).masks.shape == (0, 2, 2)


def test_a_run_beats_the_largest_class_and_segments(recipe, fields, tmp_path, capsys):
    """24 updates, seconds. Calling all pixels the largest class would have a mean IoU of 16 %."""
    masks = [np.asarray(Image.open(file)) for file in (fields / "masks/val").iterdir()]
    counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=3)
    baseline = counts.max() / counts.sum() / 3
    result = run(recipe(epochs=6))
    assert baseline < 0.2 and result["val_miou"] > 0.6
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    ious = [lines[-1][f"val_iou_{name}"] for name in COLORS]
    assert np.mean(ious) == pytest.approx(result["val_miou"], abs=1e-5)
    assert lines[-1]["val_pixel_accuracy"] > 0.75

    model = UPerNet.from_pretrained(tmp_path / "run/best").eval()
    assert model.record.classes == tuple(COLORS) and model.record.input_size == 32
    assert segment(model, fields / "images/val/0.png").names == tuple(COLORS)
    best = ["--model", str(tmp_path / "run/best")]
    assert main(["evaluate", str(fields), *best, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["miou"] == pytest.approx(100 * result["best_val_miou"], abs=1e-3)
    image = str(fields / "images/val/0.png")
    assert main(["segment", image, *best, "-o", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out_mask.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"jitter": 0.3, "ema_decay": 0.9},
        {"dtype": "bfloat16", "accumulate": 2, "optimizer": "sgd"},
        {"tune": "lora", "lora_rank": 2, "crop": "none"},
        {"tune": "head", "batch_size": 16},
        {"freeze": ["decode_head.fpn_bottleneck"], "layer_decay": 0.8, "grad_checkpoint": True},
        {**MASK2FORMER, "lr": 1e-3},
    ],
    ids=lambda options: "-".join(map(str, list(options)[:2])),
)
def test_every_kind_of_run_resumes_exactly(recipe, tmp_path, options):
    """Batch norms' statistics, too, and where crops lie."""
    options = {**options, "epochs": 1, "batch_size": options.get("batch_size", 8) * 2}
    run(recipe(out=str(tmp_path / "whole"), **options))
    parts = recipe(out=str(tmp_path / "parts"), **options)
    assert run(dataclasses.replace(parts, max_minutes=1e-9))["step"] == 1
    assert run(parts)["outcome"] in ("finished", "finished before")
    for file in ("model.safetensors", "training.safetensors"):
        found, expected = (mx.load(str(tmp_path / n / "last" / file)) for n in ("parts", "whole"))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert mx.array_equal(found[name], value), name


def test_statistics_follow_what_is_seen_but_not_those_that_are_frozen(recipe):
    start, trainer = (make_trainer(recipe(freeze=["decode_head.fpn_bottleneck"])) for _ in "ab")
    trainer.model.train()
    batches = trainer.source.train_batches([np.arange(8)] * 2)
    for batch in batches:
        trainer.train_step(*batch)
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.BatchNorm):
            before = dict(start.model.named_modules())[name]
            is_frozen = name.startswith("decode_head.fpn_bottleneck")
            assert mx.array_equal(module.running_mean, before.running_mean) == is_frozen, name
            assert module.running_var.dtype == mx.float32


def test_a_mask2former_learns_a_batch_by_heart(recipe):
    pytest.importorskip("scipy")
    trainer = make_trainer(recipe(**MASK2FORMER, lr=3e-3, schedule="constant"))
    assert isinstance(trainer.model, Mask2Former) and trainer.model.record.tasks == ("semantic",)
    trainer.model.train()
    batch = next(trainer.source.train_batches([np.arange(8)]))
    metrics = [trainer.train_step(*batch) for _ in range(12)]
    losses = [float(m["loss"]) for m in metrics]
    assert losses[-1] < 0.8 * losses[0]


def test_a_upernet_is_put_on_a_classifier(recipe, tmp_path, capsys):
    classifier = create_model("nat_mini", **{k: v for k, v in BODY.items()})
    classifier.save_pretrained(tmp_path / "classifier")
    trainer = make_trainer(
        recipe(model=str(tmp_path / "classifier"), model_args=HEADS, pretrained=True)
    )
    assert "is put on the body of" in capsys.readouterr().err
    ours, theirs = trainer.model.backbone.levels[0].blocks[0], classifier.levels[0].blocks[0]
    assert mx.array_equal(ours.attn.qkv.weight, theirs.attn.qkv.weight)
    record = trainer.model.record
    assert (record.crop_mode, record.input_size, record.classes) == ("whole", 32, tuple(COLORS))


def test_what_is_refused(recipe, fields):
    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            make_trainer(recipe(**changes))

    refused("semantic segmentation needs mixup 0, smoothing 0", mixup=0.1, smoothing=0.1)
    refused("semantic segmentation needs crop resized", crop="shift")
    refused("'batch_size' must be at least twice", batch_size=8, accumulate=8)
    refused("'sliding_window' is for a UPerNet", **MASK2FORMER, sliding_window=True)
    refused("'compile' must not be yes for a Mask2Former", **MASK2FORMER, compile="yes")
    refused("'model' must be a UPerNet, .*which is made for video-class", model="nat3d_mini")
    refused("'scales' must be two rising numbers", scales=[2.0, 1.0])
    with pytest.raises(ValueError, match="'out' must lie outside of the data"):
        run(recipe(out=str(fields / "images" / "run")))


def test_the_models_own_task_and_recipe_need_no_option(recipe, tmp_path, fields, capsys):
    """A saved UPerNet learns from masks; `--task semantic` takes the recipe of that name."""
    make_trainer(recipe()).model.save_pretrained(tmp_path / "start")
    saved = {"model": str(tmp_path / "start"), "model_args": {}, "pretrained": True}
    trainer = make_trainer(recipe(**saved, task="auto"))
    assert trainer.METRIC == "miou"
    command = ["finetune", str(fields), "--task", "semantic", "--model", str(tmp_path / "start")]
    assert main([*command, "--out", str(tmp_path / "run"), "--max-minutes", "1e-9"]) == 1
    text = (tmp_path / "run/recipe.yaml").read_text()
    assert "task: semantic" in text and "epochs: 60" in text
    assert load_pretrained(None, tmp_path / "run/last").config.num_classes == 3


@pytest.mark.slow
def test_textures_are_told_from_each_other_whatever_their_colors(recipe, tmp_path):
    """A minute or two. The largest class alone has a mean IoU of 12 %."""
    data = write_scenes(tmp_path / "data", textures, {"train": 96, "val": 24}, TEXTURES)
    masks = [np.asarray(Image.open(file)).ravel() for file in (data / "masks/val").iterdir()]
    counts = np.bincount(np.concatenate(masks), minlength=3)
    result = run(recipe(data=str(data), epochs=10, scales=[1.0, 1.2], jitter=0.2))
    assert counts.max() / counts.sum() / 3 < 0.2 and result["best_val_miou"] > 0.6

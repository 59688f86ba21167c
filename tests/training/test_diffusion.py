"""Training a model that makes images: its noise, its loss, runs that learn, stop and go on."""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import cli, load_pretrained
from natten_zoo.models import HDiT, HDiTConfig
from natten_zoo.tasks import sample
from natten_zoo.training import Recipe, run
from natten_zoo.training.diffusion import UNLABELED, denoising, draw_noise, weigh
from natten_zoo.training.launch import make_trainer

TINY = {
    "widths": [16, 32],
    "depths": [1, 1],
    "head_dims": 16,
    "kernel_sizes": 3,
    "patch": [2, 2],
    "mapping_dim": 16,
}
OWN = {
    **{"model": "hdit_pico_fashion", "model_args": TINY, "pretrained": False, "task": "diffusion"},
    **{"crop": "none", "flip": False, "smoothing": 0.0, "erase": 0.0, "jitter": 0.0},
    **{"layer_decay": 1.0, "batch_size": 16, "epochs": 2, "lr": 3e-3, "warmup_epochs": 0.1},
}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Squares that are bright, dark, or half of each, as IDX files."""
    folder, random = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 96), ("t10k", 32)):
        labels = np.arange(count) % 10
        images = np.full((count, 28, 28), 20, np.uint8)
        images[labels % 2 == 1] = 220
        images[labels > 4, :14] = 120
        images = (images + random.integers(-9, 9, images.shape)).clip(0, 255)
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


def recipe(data, out, **changes):
    return Recipe.from_dict({**OWN, "data": str(data), "out": str(out), **changes})


def lines(out):
    return [json.loads(text) for text in (Path(out) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("side", [16, 28, 64, 256])
def test_noise_is_that_of_the_interpolated_cosine_schedule(side):
    config = HDiTConfig(sigma_data=0.5, sigma_min=0.01, sigma_max=160.0)
    u = np.linspace(0, 1, 101)

    def shifted(reference):
        """As published: of the signal-to-noise ratio's logarithm, from 1000 down to 0.001."""
        shift = 2 * np.log(reference / side)
        most, least = (-2 * np.log(sigma / 0.5) - shift for sigma in (1e-3, 1e3))
        ends = np.arctan(np.exp(-0.5 * most)), np.arctan(np.exp(-0.5 * least))
        return -2 * np.log(np.tan(ends[0] + u * (ends[1] - ends[0]))) + shift

    logs = u * shifted(min(32, side)) + (1 - u) * shifted(side)
    found = np.array(draw_noise(mx.array(u.astype(np.float32)), config, side))
    np.testing.assert_allclose(found[1:-1], 0.5 * np.exp(-0.5 * logs)[1:-1], rtol=1e-3)
    assert (np.diff(found) > 0).all()
    # Of larger images, of which noise hides less, more is drawn from what is noisy.
    half = float(draw_noise(mx.array([0.5]), config, side)[0])
    assert half == pytest.approx(0.5 if side <= 32 else 0.5 * (side / 32) ** 0.5, rel=1e-2)


def test_the_loss_is_the_soft_min_snrs():
    """On the denoised image its weight is 1 / (sigma^2 + sigma_d^2)."""
    mx.random.seed(0)
    model = HDiT(HDiTConfig(**TINY, in_chans=1, sigma_data=0.7))
    drawn = [(k, mx.random.normal(v.shape, scale=0.2)) for k, v in tree_flatten(model.parameters())]
    model.load_weights(drawn).eval()
    images, noise = mx.random.normal((2, 3, 24, 24, 1))
    sigma = mx.array([0.05, 0.7, 9.0])
    errors, squares, weights = weigh(model, images, noise, sigma, None)
    denoised = model.denoise(images + sigma[:, None, None, None] * noise, sigma)
    plain = (denoised - images).square().mean((1, 2, 3))
    np.testing.assert_allclose(errors * weights, plain / (sigma**2 + 0.49), rtol=1e-4)
    fresh = HDiT(HDiTConfig(**TINY, in_chans=1, sigma_data=0.7))
    np.testing.assert_allclose(*weigh(fresh, images, noise, sigma, None)[:2], rtol=1e-6)
    assert float(squares.min()) > 0


def test_a_tenth_of_the_labels_is_not_told():
    told = []

    class Spy(HDiT):
        def __call__(self, x, sigma, labels=None):
            told.extend(labels.tolist())
            return x

    model = Spy(HDiTConfig(**TINY, num_labels=4))
    denoising(model, mx.zeros((4000, 16, 16, 3)), mx.zeros(4000, mx.int32))
    assert set(told) == {0, 3}
    assert np.mean(np.array(told) == 3) == pytest.approx(UNLABELED, abs=0.02)


def test_a_run_learns_and_its_model_makes_images(data, tmp_path):
    result = run(recipe(data, tmp_path / "run", epochs=8, lr=1e-2, ema_decay=0.5))
    assert result["outcome"] == "finished"
    values = [line["val_explained"] for line in lines(tmp_path / "run") if "val_explained" in line]
    assert values[-1] > values[0] + 0.1 and values[-1] > 0.3
    assert not any("accuracy" in line for line in lines(tmp_path / "run"))
    assert (tmp_path / "run" / "curve.png").exists()
    model = load_pretrained(HDiT, tmp_path / "run" / "best")
    assert model.config.num_labels == 11 and len(model.record.classes) > 0
    assert sample(model, 2, steps=2, labels=[1, 2]).pixels.shape == (2, 28, 28, 1)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(data, tmp_path):
    whole = recipe(data, tmp_path / "whole", save_every=4, dtype="bfloat16", ema_decay=0.9)
    run(whole)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    trainer = make_trainer(parts)
    step = trainer.train_step

    def stop_at_seven(*batch):
        trainer.stop_reason = "stopped" if trainer.step == 6 else ""
        return step(*batch)

    trainer.train_step = stop_at_seven
    assert trainer.fit()["outcome"] == "stopped"
    assert run(parts)["outcome"] == "finished"
    one, other = (load_pretrained(HDiT, tmp_path / name / "last") for name in ("whole", "parts"))
    pairs = zip(tree_flatten(one.parameters()), tree_flatten(other.parameters()), strict=True)
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in pairs)


def test_fine_tuning_starts_from_weights(data, tmp_path):
    run(recipe(data, tmp_path / "first", epochs=1))
    start = str(tmp_path / "first" / "last")
    again = recipe(data, tmp_path / "second", model=start, model_args={}, pretrained=True)
    trainer = make_trainer(again)
    before = load_pretrained(HDiT, start)
    assert mx.array_equal(trainer.model.patch_in.proj.weight, before.patch_in.proj.weight)
    assert mx.array_equal(trainer.model.class_emb.weight, before.class_emb.weight)
    free = dataclasses.replace(again, model_args={"num_labels": 0})
    model = make_trainer(free).model
    assert "class_emb" not in model and model.record.num_classes == 0


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(recipe(data, "run", epochs=1).to_yaml())
    words = ["finetune", str(data), "--task", "diffusion", "-c", "tiny.yaml", "-o", "run"]
    assert cli.main(words) == 0
    assert "val_explained=" in capsys.readouterr().out
    assert cli.main(["sample", "-m", "run/best", "-n", "1", "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing": 0.1, "mixup": 0.5}, "a model that makes images needs mixup 0, smoothing 0"),
        ({"model": "nat_pico_fashion", "model_args": {}}, "must be an HDiT for 'task' diffusion"),
        ({"tune": "head"}, "'tune' must be full or lora"),
        ({"drop_path": 0.1}, "'drop_path' must be left out"),
        ({"model_args": {**TINY, "num_labels": 5}}, "'num_labels' must be 0 or 11"),
        ({"data": "mnist1d"}, "learns from a folder, an archive or a CSV file of images"),
        ({"task": "poems"}, "'task' must be one of"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(recipe(change.pop("data", data), tmp_path / "run", **change))

"""Sampling: schedules, samplers on a problem with a known answer, images, the verb."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from natten_zoo import cli
from natten_zoo.configs.record import Record
from natten_zoo.models import HDiT, HDiTConfig
from natten_zoo.tasks import Samples, sample
from natten_zoo.tasks.samplers import SAMPLERS, flow, karras_schedule
from natten_zoo.tasks.sampling import to_pixels

CONFIG = HDiTConfig(
    widths=(16, 32), depths=(1, 1), head_dims=16, patch=(1, 1), mapping_dim=16, num_labels=3
)


@pytest.fixture(scope="module")
def model():
    mx.random.seed(0)
    model = HDiT(CONFIG)
    drawn = [(k, mx.random.normal(v.shape, scale=0.3)) for k, v in tree_flatten(model.parameters())]
    return model.load_weights(drawn).eval()


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_reach_a_gaussian(name):
    """Of data N(2, 0.5^2) the exact denoiser is known, and so is where a noise must end."""
    mean, deviation = 2.0, 0.5
    noise = mx.array([-1.5, -0.2, 0.9, 2.0])

    def denoise(x, sigma):
        return mean + (x - mean) * deviation**2 / (deviation**2 + sigma**2)

    ends = []
    for steps in (20, 80):
        sigmas = karras_schedule(steps, 1e-3, 50.0)
        *_, end = SAMPLERS[name](denoise, mean + noise * 50.0, sigmas)
        ends.append(np.abs(np.array(end - (mean + deviation * noise))).max())
    assert ends[1] < (0.04 if name == "euler" else 5e-3)
    assert ends[1] < 0.5 * ends[0]


def test_a_flow_takes_equal_steps():
    *_, end = flow(lambda x, t: mx.full(x.shape, 3 * t * t), mx.zeros(2), 10)
    np.testing.assert_allclose(end, sum(3 * (i / 10) ** 2 / 10 for i in range(10)), rtol=1e-6)


def test_schedules():
    sigmas = karras_schedule(10, 0.01, 160.0)
    assert len(sigmas) == 11 and sigmas[-1] == 0 and list(sigmas) == sorted(sigmas, reverse=True)
    np.testing.assert_allclose([sigmas[0], sigmas[-2]], [160, 0.01])
    assert karras_schedule(1, 0.01, 3.0) == pytest.approx((3.0, 0.0))
    with pytest.raises(ValueError, match="'steps' must be positive but got 0"):
        karras_schedule(0, 0.01, 1.0)


def test_an_image_depends_on_the_seed_and_its_number_alone(model):
    options = {"steps": 2, "size": (8, 16), "labels": 1}
    together = sample(model, 5, seed=3, **options).pixels
    assert together.shape == (5, 8, 16, 3) and together.dtype == np.uint8
    parts = sample(model, 5, seed=3, batch_size=2, **options).pixels
    np.testing.assert_allclose(parts.astype(int), together, atol=1)
    assert np.abs(sample(model, 5, seed=4, **options).pixels.astype(int) - together).max() > 50


def test_labels_and_guidance(model):
    options = {"steps": 2, "size": (8, 8)}
    free = sample(model, 2, **options).pixels  # the last label stands for none
    assert np.array_equal(free, sample(model, 2, labels=2, **options).pixels)
    told = sample(model, 2, labels=[2, 0], **options).pixels
    assert np.array_equal(told[0], free[0]) and not np.array_equal(told[1], free[1])
    # Of no label there is nothing to strengthen.
    guided = sample(model, 2, guidance=4.0, **options).pixels.astype(int)
    np.testing.assert_allclose(guided, free, atol=1)


def test_progress_is_told(model):
    told = []
    sample(model, 3, steps=2, size=(8, 8), batch_size=2, each=lambda *x: told.append(x))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_grids():
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    grid = Samples(pixels).grid(scale=2)
    assert grid.mode == "L" and grid.size == (8, 8)
    assert np.array(grid)[::4, ::4].tolist() == [[0, 1], [2, 0]]
    assert Samples(pixels).grid(columns=3).size == (6, 2)


def test_pixels_follow_the_record():
    record = Record("x", "HDiT", {}, mean=(0.25,), std=(0.5,))
    values = np.array([-0.5, 0.0, 1.5, 9.0]).reshape(1, 1, 4, 1)
    assert to_pixels(values, record).ravel().tolist() == [0, 64, 255, 255]
    with pytest.raises(ValueError, match="images"):
        to_pixels(np.array([np.nan]), None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "'count' must be positive"),
        ({"sampler": "dream"}, "'sampler' must be one of euler, heun, dpm_2, dpmpp_2m but got"),
        ({"labels": 3}, r"'labels' must be integers in 0\.\.2 but got 3"),
        ({"labels": [0, 1, 2]}, "'labels' must be one, or one for each of 1 images"),
        ({"size": None}, "'size' must be a height and a width, as the model tells none"),
        ({"size": (8, 9)}, "'x' must have sides that are multiples of 2"),
    ],
    ids=str,
)
def test_bad_arguments(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(model, **{"count": 1, "steps": 1, "size": (8, 8), **wrong})


def test_models_without_labels_or_of_flows():
    plain = HDiT(HDiTConfig(widths=(16,), depths=(1,), head_dims=16, patch=(1, 1))).eval()
    with pytest.raises(ValueError, match="the model has no labels"):
        sample(plain, steps=1, size=(8, 8), labels=1)
    flowing = HDiT(HDiTConfig(widths=(16,), depths=(1,), head_dims=16, time="flow")).eval()
    with pytest.raises(ValueError, match="'model' must be a diffusion model"):
        sample(flowing, steps=1, size=(8, 8))


def test_the_verb(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    words = "sample --model model -n 3 --steps 2 --size 8 16 --label 0 1 --folder all --scale 2"
    assert cli.main([*words.split(), "-o", "grid.png"]) == 0
    assert "3 images: grid.png, all" in capsys.readouterr().out
    assert Image.open("grid.png").size == (2 * 2 * 16, 2 * 2 * 8)
    single = np.array(Image.open("all/00002.png"))
    expected = sample(model, 3, steps=2, size=(8, 16), labels=[0, 1, 0]).pixels[2]
    assert np.array_equal(single, expected)
    model.record = Record("x", "HDiT", CONFIG.to_dict(), classes=("Hat", "Shoe"), input_size=8)
    model.save_pretrained("named")
    words = "sample --model named -n 2 --steps 1 -o named.png --folder named-all"
    assert cli.main([*words.split(), "--label", "shoe", "0"]) == 0
    expected = sample(model, 2, steps=1, labels=[1, 0]).pixels
    pixels = np.array([np.array(Image.open(f"named-all/0000{i}.png")) for i in (0, 1)])
    assert np.array_equal(pixels, expected)
    assert cli.main([*words.split(), "--label", "sock"]) == 2
    assert "--label must be one of Hat, Shoe but got 'sock'" in capsys.readouterr().err
    model.record = None
    assert cli.main([*words.split(), "--label", "9"]) == 2
    assert "'labels' must be integers in 0..2" in capsys.readouterr().err

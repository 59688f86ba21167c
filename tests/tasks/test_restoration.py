"""Restoring faces: the flow, what is done with photos that are no aligned squares, the verb."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from natten_zoo import cli
from natten_zoo.configs.record import Record
from natten_zoo.models import PMRF, PMRFConfig
from natten_zoo.tasks import restore

CONFIG = PMRFConfig(
    {"widths": (16, 32), "depths": (1, 1), "head_dims": 16, "mapping_dim": 16},
    embed_dim=12,
    depths=(2,),
    num_heads=2,
)


@pytest.fixture(scope="module")
def model():
    mx.random.seed(0)
    model = PMRF(CONFIG)
    drawn = [
        (name, mx.random.normal(value.shape, scale=0.05))
        for name, value in tree_flatten(model.model.parameters())
        if not mx.any(value).item()
    ]
    model.model.load_weights(drawn, strict=False)
    model.record = Record("x", "PMRF", CONFIG.to_dict(), input_size=64)
    return model.eval()


@pytest.fixture
def face():
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_the_flow_begins_at_the_mean_with_noise(model, face):
    told = []
    result = restore(model, face, steps=3, seed=5, each=lambda *x: told.append(x))
    y = mx.array(np.asarray(face, np.float32) / 255)[None]
    mean = mx.clip(model(y), 0, 1)
    x = mean + 0.1 * mx.random.normal(mean.shape, key=mx.random.key(5))
    for time in (0.0, 1 / 3, 2 / 3):
        x = x + model.velocity(x, mx.array([time])) / 3
    for found, expected in ((result.image, x), (result.mean, mean)):
        expected = np.clip(np.array(expected[0]) * 255 + 0.5, 0, 255).astype(np.uint8)
        np.testing.assert_allclose(np.asarray(found, int), expected, atol=1)
    assert told == [(1, 3), (2, 3), (3, 3)]
    other = restore(model, face, steps=3, seed=6)
    assert np.array_equal(other.mean, result.mean) and not np.array_equal(other.image, result.image)


def test_squares_are_resized_and_others_refused(model, face):
    assert restore(model, face.resize((100, 100)), steps=1).image.size == (64, 64)
    wide = face.resize((90, 64))
    with pytest.raises(
        ValueError, match="'photo' must be a square with one aligned face but is 90x"
    ):
        restore(model, wide, steps=1)
    cropped = restore(model, wide, steps=1, crop=True).looked_at
    assert np.array_equal(cropped, np.asarray(wide)[:, 13:77])
    with pytest.raises(ValueError, match="'steps' must be positive but got 0"):
        restore(model, face, steps=0)


def test_the_verb(model, face, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    face.resize((80, 64)).save("photo.png")
    words = ["restore", "photo.png", "--model", "model", "--steps", "2", "-o", "out.png"]
    assert cli.main(words) == 2
    assert "must be a square with one aligned face but is 80x64" in capsys.readouterr().err
    assert cli.main([*words, "--crop", "--mean", "mean.png"]) == 0
    told = capsys.readouterr()
    assert "restored: out.png, mean: mean.png" in told.out and "resized" not in told.err
    expected = restore(model, "photo.png", steps=2, crop=True)
    assert np.array_equal(Image.open("out.png"), expected.image)
    assert np.array_equal(Image.open("mean.png"), expected.mean)
    face.resize((32, 32)).save("small.png")
    assert cli.main(["restore", "small.png", *words[2:]]) == 0
    assert "small.png: 32x32 was resized to 64x64" in capsys.readouterr().err
    assert cli.main(["restore", "small.png", *words[2:-1], "small.png"]) == 2
    assert "would overwrite the input" in capsys.readouterr().err

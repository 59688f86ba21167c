from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo import create_model
from natten_zoo.cli import main
from natten_zoo.models import NAT, UPerNet, inflate
from natten_zoo.pretrained.quantize import quantize, size
from natten_zoo.training.launch import make_trainer


@pytest.fixture
def model():
    return create_model("nat_pico_fashion", pretrained=True)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.05), (6, 0.2), (4, 0.6)])
def test_a_quantized_model_is_nearly_the_same_and_comes_back_bit_for_bit(
    model, tmp_path, bits, error
):
    x = mx.random.normal((2, 28, 28, 1), key=mx.random.key(0))
    exact, full = np.array(model(x)), size(model)
    count, stay = quantize(model, bits)
    # 64 does not divide the 32 channels of the first level.
    assert (count, len(stay)) == (39, 6) and all(name.startswith("levels.0.") for name in stay)
    assert 0 < np.abs(np.array(model(x)) - exact).max() < error
    assert size(model) < full * (bits + 2) / 32 + 400_000
    folder = model.save_pretrained(tmp_path / "q")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": bits, "mode": "affine"}
    back = NAT.from_pretrained(folder)
    assert isinstance(back.levels[1].blocks[0].attn.qkv, nn.QuantizedLinear)
    assert isinstance(back.patch_embed.proj[0], nn.Conv2d)
    assert mx.array_equal(back(x), model(x))


def test_layers_that_the_groups_do_not_divide_stay(model):
    count, stay = quantize(model, 8, group_size=128)
    assert count and all("levels.2." not in name for name in stay)
    assert "levels.1.blocks.0.attn.qkv" in stay


@pytest.mark.parametrize("options", [{"bits": 5}, {"group_size": 48}])
def test_bad_arguments(model, options):
    with pytest.raises(ValueError, match=f"'{next(iter(options))}' must be"):
        quantize(model, **options)


def test_a_quantized_model_is_neither_trained_nor_made_into_another(model, tmp_path, recipe):
    quantize(model)
    with pytest.raises(ValueError, match=r"\[inflate\] 'model' must have floating point weights"):
        inflate(model)
    with pytest.raises(ValueError, match="'classifier' must have floating point weights but got"):
        UPerNet.from_classifier(model)
    folder = str(model.save_pretrained(tmp_path / "q8"))
    options = {"model": folder, "model_args": {}, "image_size": None}
    for tune in ("full", "head", "lora"):
        with pytest.raises(ValueError, match=r"\[train\] 'model' must have floating point weights"):
            make_trainer(recipe(pretrained=True, tune=tune, **options))
    assert make_trainer(recipe(pretrained=False, **options)).total  # its weights are not taken


def test_the_command(tmp_path, capsys):
    command = ["quantize", "nat_pico_fashion", str(tmp_path / "q8")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "39 linear layers in 8 bits" in text and "before: 3.50 MiB" in text
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err

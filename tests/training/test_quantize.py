from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from natten_zoo import create_model
from natten_zoo.cli import main
from natten_zoo.models import NAT, NATConfig, UPerNet, inflate
from natten_zoo.pretrained.mixed_bits import losses, worst
from natten_zoo.pretrained.quantize import Quantization, linear_layers, quantize, size
from natten_zoo.tasks.classification import output_names
from natten_zoo.training.launch import make_trainer
from natten_zoo.training.lora import add_lora, fused


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


@pytest.mark.parametrize(
    ("mode", "settings", "error"),
    [("mxfp4", (32, 4), 2.0), ("nvfp4", (16, 4), 2.0), ("mxfp8", (32, 8), 0.6)],
)
def test_floats_of_few_bits(model, tmp_path, mode, settings, error):
    x = mx.random.normal((2, 28, 28, 1), key=mx.random.key(0))
    exact = np.array(model(x))
    count, stay = quantize(model, mode=mode)
    assert (count, stay) == (45, []) and model.levels[0].blocks[0].attn.qkv.mode == mode
    assert 0 < np.abs(np.array(model(x)) - exact).max() < error
    folder = model.save_pretrained(tmp_path / "q")
    config = json.loads((folder / "config.json").read_text())["quantization"]
    assert config == {"group_size": settings[0], "bits": settings[1], "mode": mode}
    assert mx.array_equal(NAT.from_pretrained(folder)(x), model(x))


def test_layers_of_other_bits(model, tmp_path):
    x = mx.random.normal((2, 28, 28, 1), key=mx.random.key(0))
    names = ["levels.1.blocks.0.attn.qkv", "levels.2.blocks.0.mlp.fc1"]
    layers = {names[0]: Quantization(64, 8), names[1]: Quantization.of("mxfp8"), "head": None}
    count, stay = quantize(model, 4, layers=layers)
    assert count == 38 and "head" in stay
    folder = model.save_pretrained(tmp_path / "q")
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    assert settings[names[0]] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert settings[names[1]] == {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    back = NAT.from_pretrained(folder)
    assert back.levels[1].blocks[0].attn.qkv.bits == 8 and type(back.head) is nn.Linear
    assert mx.array_equal(back(x), model(x))
    with pytest.raises(ValueError, match="'layers' must be linear but got nobody"):
        quantize(NAT.from_pretrained("nat_pico_fashion"), layers={"nobody": None})


def test_bits_where_they_matter():
    """A layer whose answers nobody hears loses nothing, and one that shouts much."""
    mx.random.seed(0)
    config = NATConfig(64, (2,), (2,), kernel_size=3, in_chans=1, num_classes=5)
    model = NAT(config).eval()
    x = [mx.random.normal((3, 16, 16, 1), key=mx.random.key(i)) for i in range(2)]
    block = model.levels[0].blocks[0]
    block.mlp.fc2.weight = mx.zeros_like(block.mlp.fc2.weight)
    block.attn.proj.weight = 30 * block.attn.proj.weight
    before = model(x[0])
    measured = losses(model, x, Quantization(64, 4))
    assert mx.array_equal(model(x[0]), before)
    assert len(measured) == 9 and min(measured.values()) > -1e-6
    silent = "levels.0.blocks.0.mlp.fc1"
    assert measured[silent] == pytest.approx(0, abs=1e-7)
    assert measured["levels.0.blocks.0.attn.proj"] > 3 * measured["levels.0.blocks.1.attn.proj"]
    weights = {name: linear_layers(model)[name].weight.size for name in measured}
    chosen = worst(model, measured, 0.3)
    assert chosen and silent not in chosen
    assert sum(weights[name] for name in chosen) <= 0.3 * sum(weights.values())
    assert worst(model, measured, 0.0) == [] and set(worst(model, measured, 1.0)) == set(measured)


@pytest.mark.parametrize("options", [{"bits": 5}, {"group_size": 48}, {"mode": "fp4"}])
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
    for tune in ("full", "head"):
        with pytest.raises(ValueError, match=r"\[train\] 'model' must have floating point weights"):
            make_trainer(recipe(pretrained=True, tune=tune, **options))
    assert make_trainer(recipe(pretrained=False, **options)).total  # its weights are not taken


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
def test_lora_on_quantized_layers(model, mode):
    x = mx.random.normal((2, 28, 28, 1), key=mx.random.key(0))
    quantize(model, mode=mode)
    before = model(x)
    assert add_lora(model, 4, 2.0, ["qkv", "proj"]) > 5
    assert type(model.head) is nn.Linear and mx.allclose(model(x), before, atol=1e-4)
    learned = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert {"head.weight", "levels.2.blocks.0.attn.qkv.lora_b"} <= learned
    assert all("lora_" in name or name.startswith("head.") for name in learned)
    layer = model.levels[2].blocks[0].attn.qkv
    layer.lora_b = mx.random.normal(layer.lora_b.shape, scale=0.1, key=mx.random.key(1))
    adapted = model(x)
    with fused(model):
        kept = model.levels[2].blocks[0].attn.qkv
        assert isinstance(kept, nn.QuantizedLinear) and kept.mode == mode
        error = mx.abs(model(x) - adapted).max().item()
    assert 0 < error < 0.1 * mx.abs(adapted).max().item() + (0.5 if "4" in mode else 0)
    assert mx.array_equal(model(x), adapted)


def test_qlora_learns_and_stays_quantized(tmp_path, recipe):
    small = {"embed_dim": 32, "depths": (1,), "num_heads": (1,), "kernel_size": 3}
    model = create_model("nat_mini", **small).eval()
    quantize(model, mode="mxfp8")
    folder = str(model.save_pretrained(tmp_path / "q8"))
    options = {"model": folder, "model_args": {}, "epochs": 1, "out": str(tmp_path / "run")}
    result = make_trainer(recipe(pretrained=True, tune="lora", **options)).fit()
    assert result["outcome"].startswith("finished")
    best = NAT.from_pretrained(tmp_path / "run" / "best")
    assert best.levels[0].blocks[0].attn.qkv.mode == "mxfp8" and type(best.head) is nn.Linear


def test_the_command_mixes(tmp_path, capsys):
    model = create_model("nat_pico_fashion", depths=(1, 1), num_heads=(2, 4), dilations=None)
    saved = model.eval().save_pretrained(tmp_path / "model")
    for name in output_names(model):
        (tmp_path / "data" / name.replace("/", "_")).mkdir(parents=True)
    for index, folder in enumerate(sorted((tmp_path / "data").iterdir())):
        Image.new("L", (28, 28), 20 * index).save(folder / "a.png")
    command = ["quantize", str(saved), str(tmp_path / "q"), "--mixed", "0.5"]
    data = ["--data", str(tmp_path / "data"), "--by-order", "--calibrate", "1"]
    assert main([*command, *data]) == 0
    text = capsys.readouterr().out
    assert "linear layers in 4 bits" in text and " in 8 bits: " in text
    for more, message in (([], "--mixed looks"), ([*data, "--bits", "4"], "--mixed chooses")):
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    command = ["quantize", "nat_pico_fashion", str(tmp_path / "q8")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "39 linear layers in 8 bits" in text and "before: 3.50 MiB" in text
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err

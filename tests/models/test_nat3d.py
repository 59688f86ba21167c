"""NAT3D against reference outputs, against the 2-D models it is inflated from, and its figures."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.configs.record import Record
from natten_zoo.layers.norm import LayerNorm
from natten_zoo.models import NAT, NAT3D, DiNAT, DiNAT3D, NAT3DConfig, NATConfig, inflate
from natten_zoo.models.cost import count_cost
from natten_zoo.pretrained.strict import load_strict

FIXTURE = Path(__file__).parents[1] / "fixtures/nat3d/nat3d_tiny.npz"
# Millions of parameters and GMACs of 32x224x224, layer norms not counted, with windows of 3 and of
# 7 tokens in time.
STATED = {
    "nat3d_mini": ((19.78, 47.8), (19.98, 56.7)),
    "nat3d_tiny": ((27.76, 75.3), (28.09, 88.0)),
    "nat3d_small": ((50.53, 134.2), (51.03, 153.3)),
    "nat3d_base": ((89.49, 231.9), (90.15, 257.4)),
}


def image_model(cls=NAT, dilations=None):
    mx.random.seed(0)
    config = NATConfig(
        8, (1, 2), (1, 2), kernel_size=3, dilations=dilations, layer_scale=0.5, num_classes=5
    )
    model = cls(config).eval()
    for name, module in model.named_modules():
        if name.endswith("attn"):
            module.rpb = mx.random.normal(module.rpb.shape)
    model.head.weight = mx.random.normal(model.head.weight.shape)
    return model


def test_parity():
    with np.load(FIXTURE) as file:
        data = dict(file)
    model = NAT3D(NAT3DConfig.from_dict(json.loads(str(data["meta"])))).eval()
    weights = {k.removeprefix("param::"): mx.array(data[k]) for k in data if k.startswith("param")}
    load_strict(model, model.sanitize(weights))
    logits = np.array(model(mx.array(data["input"].transpose(0, 2, 3, 4, 1))))
    assert np.abs(logits - data["logits"]).max() < 1e-5 * np.abs(data["logits"]).max()


@pytest.mark.parametrize("name", STATED)
def test_figures(name, monkeypatch):
    clip = mx.zeros((1, 32, 224, 224, 3))
    for variant, (params, gmacs) in zip((name, f"{name}_7x7x7"), STATED[name], strict=True):
        model, record = create_model(variant).eval(), get_record(variant)
        whole = count_cost(model, clip)
        assert (whole.params, whole.macs) == (record.params, round(record.gmacs * 1e9))
        assert round(whole.params / 1e6, 2) == params
        with monkeypatch.context() as patch:
            patch.delattr(LayerNorm, "macs")
            assert round(count_cost(model, clip).macs / 1e9, 1) == gmacs


def test_variants():
    kernels = {n: tuple(get_record(n).model["kernel_size"]) for n in list_models("nat3d*")}
    assert kernels.pop("nat3d_pico") == (3, 3, 3)
    assert set(kernels) == {*STATED, *(f"{name}_7x7x7" for name in STATED)}
    assert all(kernels[n] == ((7, 7, 7) if "7x7x7" in n else (3, 7, 7)) for n in kernels)
    assert list_models("*nat3d*", pretrained=True) == []
    for size in ("mini", "tiny", "small", "base"):
        video, image = get_record(f"dinat3d_{size}"), get_record(f"dinat_{size}")
        assert video.model["dilations"] == image.model["dilations"]
        assert (video.architecture, video.frames, video.num_classes) == ("DiNAT3D", 32, 400)
    layer = create_model("dinat3d_mini").levels[0].blocks[1].attn
    assert layer.neighborhood.dilation == (1, 8, 8)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("cls, dilations", [(NAT, None), (DiNAT, ((2,), (1, 3)))])
def test_inflated_on_a_constant_clip_is_the_image_model(cls, dilations, kernel_size):
    model = image_model(cls, dilations)
    video = inflate(model, kernel_size)
    assert type(video) is (DiNAT3D if dilations else NAT3D) and not video.training
    x = mx.random.normal((2, 41, 52, 3))
    expected = model(x)
    still = mx.broadcast_to(x[:, None], (2, 10, 41, 52, 3))
    assert mx.abs(video(still) - expected).max() < 1e-5 * mx.abs(expected).max()
    moving = still.at[:, 4:].add(mx.random.normal((2, 6, 41, 52, 3)))
    assert mx.abs(video(moving) - expected).max() > 1e-2 * mx.abs(expected).max()


def test_one_frame_tubelets_and_windows_are_an_image_model_averaged_over_frames():
    model = image_model(DiNAT, ((2,), (1, 3)))
    inflated = inflate(model, kernel_size=1)
    numbers = {**inflated.config.to_dict(), "tubelet_size": 1}
    video = DiNAT3D(NAT3DConfig.from_dict(numbers)).eval()
    video.update(inflated.parameters())
    first = video.patch_embed.proj[0]
    first.weight = model.patch_embed.proj[0].weight[:, None]
    x = mx.random.normal((2, 5, 21, 32, 3))
    expected = model(x.flatten(0, 1)).reshape(2, 5, -1).mean(axis=1)
    np.testing.assert_allclose(video(x), expected, rtol=1e-4, atol=1e-5)


def test_the_small_one():
    model, record = create_model("nat3d_pico").eval(), get_record("nat3d_pico")
    clip = mx.zeros((1, record.frames, record.input_size, record.input_size, 1))
    assert [m.shape[1:] for m in model.features(clip)] == [(4, 8, 8, 64), (4, 4, 4, 128)]
    found = count_cost(model, clip)
    assert (found.params, found.macs) == (record.params, round(record.gmacs * 1e9))


def test_inflate_keeps_or_replaces_the_classifier():
    model = image_model()
    facts = {"classes": tuple("abcde"), "num_classes": 5, "top1": 80.0, "url": "https://x/y.pth"}
    model.record = Record("pet", "NAT", model.config.to_dict(), input_size=64, **facts)
    kept, fresh = inflate(model), inflate(model, num_classes=7)
    assert mx.array_equal(kept.head.weight, model.head.weight)
    assert (kept.record.classes, kept.record.input_size, kept.record.top1) == (
        tuple("abcde"),
        64,
        None,
    )
    assert kept.record.note == "inflated from pet" and not kept.record.has_weights
    assert fresh.config.num_classes == 7 and fresh.record.classes == ""
    assert inflate(model, num_classes=5).record.classes == ""
    assert fresh(mx.zeros((1, 2, 16, 16, 3))).shape == (1, 7)
    with pytest.raises(TypeError, match="'model' must be a NAT or DiNAT but got NAT3D"):
        inflate(kept)


def test_inflate_a_gray_model_of_other_strides():
    model = create_model("nat_pico_fashion").eval()
    x = mx.random.normal((1, 28, 28, 1))
    still = mx.broadcast_to(x[:, None], (1, 6, 28, 28, 1))
    np.testing.assert_allclose(inflate(model)(still), model(x), atol=1e-5)


@pytest.mark.parametrize("size", [(2, 16, 16), (5, 33, 20), (9, 8, 70)])
def test_any_input_size(size):
    model = inflate(image_model(DiNAT, ((2,), (1, 3))))
    x = mx.random.normal((2, *size, 3))
    assert [m.shape[1] for m in model.features(x)] == [size[0] // 2] * 2
    assert model(x).shape == (2, 5) and mx.isfinite(model(x)).all()
    np.testing.assert_allclose(model(x)[1:], model(x[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(mx.float16, 0.02), (mx.bfloat16, 0.1)])
def test_half_precision(dtype, tolerance):
    model = inflate(image_model(DiNAT, ((2,), (1, 3))))
    x = mx.random.normal((1, 8, 40, 40, 3))
    full = model(x)
    model.set_dtype(dtype)
    half = model(x.astype(dtype))
    assert half.dtype == dtype
    assert mx.abs(half - full).max() < tolerance * mx.abs(full).max()


def test_what_is_refused():
    model = inflate(image_model())
    with pytest.raises(ValueError, match="'x' must have 2 frames or more but got"):
        model(mx.zeros((1, 1, 16, 16, 3)))
    with pytest.raises(ValueError, match="'kernel_size' must be three numbers"):
        NAT3DConfig(8, (1,), (1,), kernel_size=3)
    with pytest.raises(ValueError, match="'tubelet_size' must be a positive integer but got 0"):
        NAT3DConfig(8, (1,), (1,), tubelet_size=0)
    with pytest.raises(ValueError, match="'dilations' must list one dilation per layer"):
        NAT3DConfig(8, (2,), (1,), dilations=((1,),))


def test_save_load_and_train(tmp_path):
    model = inflate(image_model())
    again = NAT3D.from_pretrained(model.save_pretrained(tmp_path / "model"))
    x = mx.random.normal((1, 4, 16, 16, 3))
    assert mx.array_equal(again(x), model(x)) and again.config == model.config
    gradients = dict(
        tree_flatten(nn.value_and_grad(model, lambda x: model(x).square().sum())(x)[1])
    )
    assert [name for name, value in gradients.items() if not mx.any(value != 0).item()] == []

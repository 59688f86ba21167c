"""UPerNet against mmsegmentation's outputs and upstream's figures; images of any size to masks."""

import gzip
import json
import logging
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.configs.record import Record
from natten_zoo.data import Preprocess
from natten_zoo.data.labels import class_colors, class_names
from natten_zoo.layers import resize
from natten_zoo.layers.resize import AdaptiveAveragePool, resize_bilinear
from natten_zoo.models import (
    NAT,
    DiNAT,
    DiNAT_s,
    DiNATsConfig,
    NATConfig,
    UPerNet,
    UPerNetConfig,
)
from natten_zoo.models.cost import count_cost
from natten_zoo.models.upernet_heads import ConvModule
from natten_zoo.pretrained import read_checkpoint
from natten_zoo.pretrained.adapt import adapt
from natten_zoo.pretrained.card import model_card
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import Checkpoint
from natten_zoo.pretrained.strict import load_strict
from natten_zoo.tasks.segmentation import segment

DATA = Path(__file__).parents[1] / "fixtures/upernet"
# Upstream's tables: millions of parameters, GFLOPs of a 2048x512 image (of 2560x640 for the large
# ones), mean intersection over union at one scale and at several.
PUBLISHED = {
    "upernet_nat_mini": (50, 900, 45.1, 46.4),
    "upernet_nat_tiny": (58, 934, 47.1, 48.4),
    "upernet_nat_small": (82, 1010, 48.0, 49.5),
    "upernet_nat_base": (123, 1137, 48.5, 49.7),
    "upernet_dinat_mini": (50, 900, 45.8, 47.2),
    "upernet_dinat_tiny": (58, 934, 47.8, 48.8),
    "upernet_dinat_small": (82, 1010, 48.9, 49.9),
    "upernet_dinat_base": (123, 1137, 49.6, 50.4),
    "upernet_dinat_large": (238, 2335, 54.0, 54.9),
    "upernet_dinat_s_tiny": (60, 941, 46.0, 47.4),
    "upernet_dinat_s_small": (81, 1030, 48.6, 49.9),
    "upernet_dinat_s_base": (121, 1173, 49.4, 50.2),
    "upernet_dinat_s_large": (234, 2466, 53.4, 54.6),
}
BODY = {
    "architecture": "DiNAT",
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "kernel_size": 3,
    "dilations": [[2], [1, 3]],
}


def error(ours, theirs) -> float:
    """Largest difference of NHWC from NCHW, relative to the scale of the latter."""
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def small(**changes):
    mx.random.seed(0)
    values = {"backbone": BODY, "channels": 8, "aux_channels": 4, "num_classes": 5, **changes}
    return UPerNet(UPerNetConfig.from_dict(values)).eval()


@pytest.fixture(scope="module")
def tiny():
    with np.load(DATA / "upernet_nat_tiny.npz") as file:
        data = dict(file)
    meta = json.loads(str(data["meta"]))
    body = {"architecture": meta["cls"], **meta["kwargs"]}
    widths = meta["channels"], meta["aux"]
    model = UPerNet(UPerNetConfig(body, *widths, num_classes=meta["num_classes"])).eval()
    checkpoint = read_checkpoint(DATA / "upernet_nat_tiny.pth")
    assert checkpoint.part == "state_dict"
    load_strict(model, model.sanitize(checkpoint.weights))
    return model, data


def test_parity(tiny):
    model, data = tiny
    x = mx.array(data["input"].transpose(0, 2, 3, 1))
    for i, ours in enumerate(model.features(x)):
        assert error(ours, data[f"feat::{i}"]) < 1e-5, f"map {i}"
    logits, auxiliary = model.decode_both(x)
    assert error(logits, data["logits_stride4"]) < 1e-4
    assert error(auxiliary, data["aux_logits"]) < 1e-4
    assert error(model(x), data["logits_full"]) < 1e-4
    assert np.mean(np.array(model(x).argmax(-1)) == data["pred"]) == 1


def test_names_of_parameters_are_upstreams():
    upstream = json.loads(gzip.decompress((DATA / "keys_upernet_nat_mini.json.gz").read_bytes()))
    model = create_model("upernet_nat_mini")
    weights = model.sanitize({name: mx.zeros(shape) for name, shape in upstream.items()})
    ours = {name: value.shape for name, value in tree_flatten(model.parameters())}
    assert {name: value.shape for name, value in weights.items()} == ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures(name):
    record = get_record(name)
    params, gflops, miou, multi_scale = PUBLISHED[name]
    model, side = create_model(name).eval(), record.input_size
    cost = count_cost(model, mx.zeros((1, side, side, 3)))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))
    assert cost.params == pytest.approx(params * 1e6, abs=0.5e6)
    wide = count_cost(model, mx.zeros((1, side, 4 * side, 3)))
    assert wide.macs == pytest.approx(gflops * 1e9, rel=0.002)
    assert (record.miou, record.miou_multi_scale, record.top1) == (miou, multi_scale, None)
    assert side == (640 if "large" in name else 512)


def test_stated_parameter_totals():
    sizes = "nat_mini", "nat_tiny", "nat_small", "nat_base", "dinat_large"
    totals = [round(get_record(f"upernet_{size}").params / 1e6, 2) for size in sizes]
    assert totals == [49.78, 57.70, 82.40, 123.28, 238.17]


def test_every_published_variant_is_there():
    assert sorted(PUBLISHED) == list_models("upernet_*", pretrained=True)
    assert len({get_record(name).url for name in PUBLISHED}) == 13


def test_dilations_fit_the_training_crops():
    for name in PUBLISHED:
        record = get_record(name)
        for i, level in enumerate(record.model["backbone"].get("dilations", [])):
            assert 7 * max(level) <= record.input_size // 4 // 2**i


@pytest.mark.parametrize("stem", ["upernet_dinat_mini", "nat_mini_upernet"])
def test_a_bare_file_is_known_by_its_name(stem):
    upstream = json.loads(gzip.decompress((DATA / "keys_upernet_nat_mini.json.gz").read_bytes()))
    weights = {name: mx.zeros(shape) for name, shape in upstream.items()}  # lazy
    record = infer(Checkpoint(Path(f"{stem}.pth"), weights, "torch"), None)
    assert record.name == ("upernet_dinat_mini" if "dinat" in stem else "upernet_nat_mini")
    assert record.num_classes == 150
    with pytest.raises(CheckpointError, match="upernet_nat_mini, upernet_dinat_mini, which differ"):
        infer(Checkpoint(Path("iter_160000.pth"), weights, "torch"), None)
    for head in UPerNet.CLASSIFIERS:
        weights[f"{head}.weight"] = weights[f"{head}.weight"][:7]
        weights[f"{head}.bias"] = weights[f"{head}.bias"][:7]
    record = infer(Checkpoint(Path(f"{stem}.pth"), weights, "torch"), None)
    assert (record.num_classes, record.miou, record.classes) == (7, None, "")


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (61, 45), (64, 64)])
def test_any_input_size(size):
    model = small()
    x = mx.random.normal((2, *size, 3))
    assert model(x).shape == (2, *size, 5)
    assert model.forward_features(x).shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)
    assert mx.isfinite(model(x)).all()


@pytest.mark.parametrize("dtype, tolerance", [(mx.float16, 0.02), (mx.bfloat16, 0.1)])
def test_half_precision(tiny, dtype, tolerance):
    full, data = tiny
    model = UPerNet(full.config).eval()
    load_strict(model, dict(tree_flatten(full.parameters())))
    model.set_dtype(dtype)
    half = model(mx.array(data["input"].transpose(0, 2, 3, 1)).astype(dtype))
    assert half.dtype == dtype
    assert error(half.astype(mx.float32), data["logits_full"]) < tolerance


def test_configuration_survives_json_and_takes_the_bodys_arguments():
    config = small().config
    assert UPerNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    changed = create_model("upernet_nat_mini", in_chans=1, drop_path_rate=0.0, num_classes=3)
    assert changed.config.in_chans == 1 and changed.config.backbone.drop_path_rate == 0
    assert changed.decode_head.conv_seg.weight.shape == (3, 1, 1, 512)
    assert UPerNetConfig(DiNATsConfig(8, (1, 1), (1, 1))).to_dict()["backbone"]["depths"] == [1, 1]
    with pytest.raises(ValueError, match=r"\[NATConfig\] arguments must be among .* got chanels"):
        UPerNetConfig.from_dict({"backbone": BODY, "chanels": 8})
    with pytest.raises(ValueError, match="'architecture' must be one of NAT, DiNAT, DiNAT_s but"):
        UPerNetConfig({**BODY, "architecture": "Swin"})
    with pytest.raises(TypeError, match="must be a NATConfig, a DiNATsConfig or a mapping but got"):
        UPerNetConfig("nat_mini")
    with pytest.raises(ValueError, match="must have two levels or more but got depths"):
        UPerNetConfig(NATConfig(8, (1,), (1,)))


def test_save_and_load(tmp_path):
    model = small()
    model.decode_head.bottleneck.bn.running_mean = mx.random.normal((8,))
    again = UPerNet.from_pretrained(model.save_pretrained(tmp_path / "model"))
    x = mx.random.normal((1, 20, 30, 3))
    assert mx.array_equal(again(x), model(x))


def test_model_card():
    model = create_model("upernet_nat_mini")
    model.record = get_record("upernet_nat_mini")  # as with its weights
    card = str(model_card(model, "me/mine"))
    assert "pipeline_tag: image-segmentation" in card and "45.1 % on ade20k" in card
    assert 'segment(UPerNet.from_pretrained("me/mine"), "photo.jpg")' in card
    assert "Resize the short side to 512 (bilinear)" in card


def test_reset_classifier_and_adapt(caplog):
    model = small()
    model.reset_classifier(0)
    assert model(mx.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 8)
    model.reset_classifier(3)
    weights = dict(tree_flatten(small().parameters()))
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        fitted = adapt(weights, model, {"num_classes"})
    load_strict(model, fitted)
    assert caplog.text.count("classifier of 5 classes replaced by a fresh one of 3") == 2
    gray = small(in_chans=1)
    load_strict(gray, adapt(weights, gray, {"in_chans"}))


@pytest.mark.parametrize("cls, config", [
    (NAT, NATConfig(8, (1, 2), (1, 2), kernel_size=3, layer_scale=0.5, num_classes=7)),
    (DiNAT, NATConfig(8, (1, 2), (1, 2), kernel_size=3, dilations=((2,), (1, 3)))),
    (DiNAT_s, DiNATsConfig(8, (1, 2), (1, 2), kernel_size=3)),
])  # fmt: skip
def test_a_classifier_becomes_the_body(cls, config):
    classifier = cls(config).eval()
    model = UPerNet.from_classifier(classifier, num_classes=4, channels=8, aux_channels=4)
    assert not model.training and model.record is None
    x = mx.random.normal((2, 45, 61, 3))
    for ours, theirs in zip(model.features(x), classifier.features(x), strict=True):
        np.testing.assert_allclose(ours, mx.fast.layer_norm(theirs, None, None, 1e-5), atol=1e-5)
    assert model(x).shape == (2, 45, 61, 4) and model.config.channels == 8
    dilated = UPerNet.from_classifier(classifier, dilations=((3,), (1, 2)), channels=8)
    assert dilated.config.backbone.dilations == ((3,), (1, 2))
    assert not np.allclose(dilated.features(x)[0], model.features(x)[0], atol=1e-4)


def test_a_segmenter_of_a_classifier_learns_and_is_saved(tmp_path):
    classifier = NAT(NATConfig(8, (1, 1), (1, 2), kernel_size=3, drop_path_rate=0.0))
    facts = {"crop_pct": 1.0, "top1": 80.0, "url": "https://x/y.pth", "mean": (0.5,) * 3}
    classifier.record = Record("pet", "NAT", classifier.config.to_dict(), **facts)
    model = UPerNet.from_classifier(
        classifier, 3, input_size=64, channels=8, aux_channels=8, head_drop_rate=0.0
    )
    record = model.record
    assert (record.note, record.top1, record.mean) == ("its body is that of pet", None, (0.5,) * 3)
    assert not record.has_weights and Preprocess.from_record(record).fit((128, 256)) == (64, 128)
    model.train()
    x = mx.random.normal((4, 32, 32, 3))
    labels = (x[:, ::4, ::4, :2] > 0).sum(axis=-1)
    optimizer = optim.AdamW(5e-3)

    def loss(model, x):
        logits, auxiliary = model.decode_both(x)
        auxiliary = resize_bilinear(auxiliary, logits.shape[1:3])
        losses = [nn.losses.cross_entropy(y, labels).mean() for y in (logits, auxiliary)]
        return losses[0] + 0.4 * losses[1]

    step, losses = nn.value_and_grad(model, loss), []
    for _ in range(20):
        value, gradients = step(model, x)
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    again = UPerNet.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert mx.array_equal(again(x), model(x)) and again.record.note == record.note
    assert segment(again, np.zeros((20, 30, 3), np.uint8)).mask.shape == (20, 30)


def test_the_guides_example_runs(monkeypatch):
    guide = (Path(__file__).parents[2] / "docs/finetuning.md").read_text()
    code = guide.split("## Segmentation")[1].split("```python\n")[1].split("```")[0]
    config = NATConfig(8, (3, 4, 6, 5), (1, 1, 2, 2), kernel_size=3)
    monkeypatch.setattr(DiNAT, "from_pretrained", lambda name: DiNAT(config).eval())
    names: dict = {}
    exec(code, names)
    model, labels = names["model"], mx.zeros((2, 32, 64), mx.int32)
    assert model.training and model.config.backbone.dilations[0] == (1, 16, 1)
    loss = names["loss"](model, mx.random.normal((2, 32, 64, 3)), labels)
    assert loss.item() == pytest.approx(1.4 * np.log(21), rel=0.1)


def test_what_is_no_body():
    with pytest.raises(TypeError, match="must be a NAT, DiNAT, DiNAT_s but got UPerNet"):
        UPerNet.from_classifier(small())
    classifier = create_model("nat_mini")
    with pytest.raises(ValueError, match="'dilations' must list one dilation per layer"):
        UPerNet.from_classifier(classifier, dilations=((1,),))


def test_training_reaches_every_parameter():
    model = small(head_drop_rate=0.0)
    model.train()
    x = mx.random.normal((2, 32, 32, 3))

    def loss(parameters):
        model.update(parameters)
        return sum(y.square().mean() for y in model.decode_both(x))

    gradients = dict(tree_flatten(mx.grad(loss)(model.trainable_parameters())))
    assert not any("running" in name for name in gradients)
    unmoved = [name for name, value in gradients.items() if not mx.any(value != 0).item()]
    assert unmoved == []


def test_adaptive_pooling_is_torchs():
    x = mx.array(np.arange(35, dtype=np.float32).reshape(1, 5, 7, 1))
    values = np.array(x)[0, :, :, 0]
    for cells in (1, 2, 3, 6):
        expected = [
            [
                values[
                    i * 5 // cells : -(-(i + 1) * 5 // cells),
                    j * 7 // cells : -(-(j + 1) * 7 // cells),
                ].mean()
                for j in range(cells)
            ]
            for i in range(cells)
        ]
        np.testing.assert_allclose(AdaptiveAveragePool(cells)(x)[0, :, :, 0], expected, rtol=1e-6)


def test_resizing_is_linear_in_every_direction():
    x = mx.random.normal((1, 4, 6, 2))
    assert mx.array_equal(resize_bilinear(x, (4, 6)), x)
    np.testing.assert_allclose(
        resize_bilinear(x.transpose(0, 2, 1, 3), (9, 5)),
        resize_bilinear(x, (5, 9)).transpose(0, 2, 1, 3),
        atol=1e-6,
    )
    halved = np.array(x).reshape(1, 2, 2, 3, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_bilinear(x, (2, 3)), halved, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 9])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_whole_factors_are_computed_without_indices(length, factor):
    x, size = mx.random.normal((2, length, 3, 2)), (length * factor, 3 * factor)
    given = mx.random.normal((2, *size, 2))

    def by_index(x):
        for axis, new in enumerate(size, start=1):
            x = resize.sample_linear(x, axis, resize.source_positions(x.shape[axis], new))
        return x

    (y,), (d_x,) = mx.vjp(lambda x: resize_bilinear(x, size), [x], [given])
    (expected,), (gradient,) = mx.vjp(by_index, [x], [given])
    assert mx.array_equal(y, expected)
    np.testing.assert_allclose(d_x, gradient, atol=1e-4)


def test_maps_side_by_side_are_one_convolution_on_a_gpu(monkeypatch):
    module = ConvModule(7, 5, 3)
    maps = [mx.random.normal((2, 4, 6, channels)) for channels in (3, 4)]
    one_by_one = module(*maps)
    monkeypatch.setattr("natten_zoo.models.upernet_heads.on_gpu", lambda: True)
    np.testing.assert_allclose(module(*maps), one_by_one, atol=1e-5)


def test_ade20k_is_complete():
    names, colors = class_names("ade20k"), class_colors("ade20k", 150)
    assert len(set(names)) == 150 and len(colors) == 150
    assert (names[0], names[12], names[20], names[149]) == ("wall", "person", "car", "flag")
    assert colors[2] == (6, 230, 230)
    assert len(set(class_colors(None, 256))) == 256

"""NA-UNETR against MONAI's Swin UNETR, of which it is a variant, and its figures."""

import gzip
import json
import logging
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.models import NAUNETR, NAUNETRConfig, na_unetr_blocks
from natten_zoo.models.cost import count_cost
from natten_zoo.models.na_unetr import VolumeAttention
from natten_zoo.models.swin_unetr import from_monai
from natten_zoo.pretrained import card
from natten_zoo.pretrained.key_map import key_map
from natten_zoo.pretrained.readers import Checkpoint
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.strict import load_strict
from tests import formula

DATA = Path(__file__).parents[1] / "fixtures/na_unetr"
SMALL = NAUNETRConfig(8, (1, 2), (1, 2), kernel_size=3, drop_path_rate=0.2, num_classes=3)
# The Swin UNETR of the fixture: one window on every map, so that windows are the same in both.
FIXTURE = {
    "embed_dim": 12,
    "depths": (0, 2, 1, 1),
    "kernel_size": 16,
    "in_chans": 2,
    "num_classes": 3,
}


@pytest.fixture(scope="module")
def data():
    with np.load(DATA / "swin_unetr.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(data):
    """The fixture's weights under MONAI's names; its bias tables are zeros."""
    names = json.loads(str(data["names"]))
    zeros = ("relative_position_bias_table", "relative_position_index")
    return {
        name: mx.zeros(shape) if name.endswith(zeros) else mx.array(formula.tensor(name, shape))
        for name, shape in ((name, tuple(shape)) for name, shape in names.items())
    }


def check_outputs(model, data, merging):
    x = mx.array(formula.image(0, (1, 2, 64, 32, 32)).transpose(0, 2, 3, 4, 1))
    for index, found in enumerate(model.features(x)):
        found = np.array(found)[0].transpose(3, 0, 1, 2)[::6]
        found = found[:, ::2, ::2, ::2] if index < 2 else found
        assert np.abs(found - data[f"{merging}::map{index}"]).max() < 1e-5
    logits = np.array(model(x))[0, ::4, ::4, ::4].transpose(3, 0, 1, 2)
    assert np.abs(logits - data[f"{merging}::logits"]).max() < 2e-4 * data[f"{merging}::std"]


def small(**changes):
    mx.random.seed(0)
    return NAUNETR(NAUNETRConfig.from_dict({**SMALL.to_dict(), **changes})).eval()


@pytest.mark.parametrize("merging", ["all", "published"])
def test_parity_where_every_map_is_one_window(data, weights, merging):
    model = NAUNETR(NAUNETRConfig(**FIXTURE, merging=merging)).eval()
    load_strict(model, model.sanitize(weights))
    check_outputs(model, data, merging)


def test_swins_bias_table_is_turned_around(data):
    shapes = {"rpb": (2197, 3), "qkv.weight": (36, 12), "proj.weight": (12, 12)}
    shapes |= {"qkv.bias": (36,), "proj.bias": (12,)}
    root = "layers1.0.blocks.0.attn."
    theirs = {
        root + name.replace("rpb", "relative_position_bias_table"): formula.tensor(name, shape)
        for name, shape in shapes.items()
    }
    ours = from_monai({name: mx.array(value) for name, value in theirs.items()})
    layer = VolumeAttention(12, 3, 7, rel_pos_bias=True)
    layer.load_weights([(n.removeprefix("levels.0.blocks.0.attn."), v) for n, v in ours.items()])
    x = mx.array(formula.image(1, (1, 343, 12)).reshape(1, 7, 7, 7, 12))
    assert np.abs(np.array(layer(x))[0] - data["attention"]).max() < 1e-5
    layer.rpb = layer.rpb[:, ::-1, ::-1, ::-1]
    assert np.abs(np.array(layer(x))[0] - data["attention"]).max() > 1e-2


@pytest.mark.parametrize("size", [(4, 6, 5), (3, 9, 8), (7, 7, 2), (1, 1, 1)])
def test_windows_shrink_to_small_maps(size):
    mx.random.seed(0)
    layer = VolumeAttention(6, 2, 7, rel_pos_bias=True)
    layer.rpb = mx.random.normal(layer.rpb.shape)
    x = mx.random.normal((2, *size, 6))
    hood = layer.neighborhood
    masks = [np.asarray(hood.mask(axis, n)) for axis, n in enumerate(size)]
    offsets = [np.arange(n)[None, :] - np.arange(n)[:, None] + 6 for n in size]
    seen = np.einsum("ad,be,cf->abcdef", *masks).reshape(np.prod(size), -1)
    grids = [offset.clip(0, 12) for offset in offsets]
    a, b, c = (
        g.reshape(np.insert(np.ones(4, int), [i, i + 2], g.shape)) for i, g in enumerate(grids)
    )
    bias = np.array(layer.rpb)[:, a, b, c].reshape(2, np.prod(size), -1)
    q, k, v = (np.array(y).reshape(2, -1, 2, 3) for y in layer.project_qkv(x))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * layer.scale + bias
    logits = np.where(seen, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    out = np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), v).reshape(2, *size, 6)
    np.testing.assert_allclose(layer(x), layer.proj(mx.array(out)), atol=2e-5)


def test_names_and_parameters_are_those_of_monai():
    names = json.loads(gzip.decompress((DATA / "keys_swin_unetr.json.gz").read_bytes()))
    theirs = {name: mx.zeros(shape) for name, shape in names.items()}
    ours = dict(tree_flatten(create_model("na_unetr_btcv").parameters()))
    assert {n: v.shape for n, v in from_monai(theirs).items()} == {
        n: v.shape for n, v in ours.items()
    }
    assert sum(v.size for v in ours.values()) == 62_187_296
    checkpoint = Checkpoint(DATA, theirs, "torch")
    mapping = key_map(create_model("na_unetr_btcv"), checkpoint)
    assert all(len(origin) == 1 for origin in mapping.values())
    assert mapping["decoders.0.up.weight"] == ("decoder5.transp_conv.conv.weight",)
    assert mapping["skips.3.conv2.weight"] == ("encoder4.layer.conv2.conv.weight",)


@pytest.mark.parametrize("name", list_models("na_unetr*"))
def test_figures(name):
    model, record = create_model(name).eval(), get_record(name)
    cost = count_cost(model, mx.zeros((1, 96, 96, 96, 1)))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))
    assert not record.has_weights and record.num_classes == 14


def test_from_swin_unetr(weights, tmp_path, caplog):
    file = tmp_path / "swin_unetr.safetensors"
    mx.save_safetensors(str(file), weights)
    model = NAUNETR.from_swin_unetr(file, merging="published", **FIXTURE)
    parameters = dict(tree_flatten(model.parameters()))
    assert all(mx.array_equal(parameters[n], v) for n, v in from_monai(weights).items())
    assert not caplog.records
    with pytest.raises(ValueError, match=r"levels\.0\.downsample\.norm\.bias: the model has"):
        NAUNETR.from_swin_unetr(file)
    with pytest.raises(ValueError, match="'model' must be a NAUNETR but 'nat_mini' is a NAT"):
        NAUNETR.from_swin_unetr(file, model="nat_mini")


@pytest.mark.parametrize("prefix", ["module.", "encoder."])
def test_from_an_encoder_alone(data, weights, tmp_path, caplog, prefix):
    """As self-supervised training saves it, under two sets of names."""
    encoder = {n.removeprefix("swinViT."): v for n, v in weights.items() if "swinViT" in n}
    if prefix == "encoder.":
        encoder = {name.replace(".0.", ".0.0.", 1) if name.startswith("layers") else name: value
                   for name, value in encoder.items()}  # fmt: skip
    else:
        encoder = {name.replace("mlp.linear", "mlp.fc"): value for name, value in encoder.items()}
    file = tmp_path / "encoder.safetensors"
    mx.save_safetensors(str(file), {prefix + n: v for n, v in encoder.items()})
    changes = {**FIXTURE, "num_classes": 5}
    with caplog.at_level(logging.WARNING):
        model = NAUNETR.from_swin_unetr(file, merging="published", **changes).eval()
    assert "left as initialized: " in caplog.text and "decoders.0.up.weight" in caplog.text
    x = mx.array(formula.image(0, (1, 2, 64, 32, 32)).transpose(0, 2, 3, 4, 1))
    last = np.array(model.features(x)[-1])[0].transpose(3, 0, 1, 2)[::6]
    assert np.abs(last - data["published::map4"]).max() < 1e-5
    assert model(x).shape == (1, 64, 32, 32, 5)


def test_a_wrong_checkpoint_is_refused(tmp_path):
    file = tmp_path / "nat.safetensors"
    mx.save_safetensors(str(file), {"levels.0.blocks.0.norm1.weight": mx.zeros((8,))})
    for load in (NAUNETR.from_swin_unetr, NAUNETR.from_pretrained):
        with pytest.raises(CheckpointError, match=r"nat\.safetensors: its weights"):
            load(file, model="na_unetr_btcv")
    table = "layers1.0.blocks.0.attn.relative_position_bias_table"
    mx.save_safetensors(str(file), {table: mx.zeros((13 * 13, 3))})  # of images
    with pytest.raises(ValueError, match=r"rpb: the model has \(3, 13, 13, 13\), the file \(169"):
        NAUNETR.from_swin_unetr(file)


@pytest.mark.parametrize("size", [(16, 16, 16), (9, 30, 21), (5, 3, 40)])
def test_any_input_size(size):
    model = small()
    x = mx.random.normal((2, *size, 1))
    y = model(x)
    assert y.shape == (2, *size, 3) and mx.isfinite(y).all()
    np.testing.assert_allclose(y[1:], model(x[1:]), rtol=1e-3, atol=1e-4)
    assert [m.shape[-1] for m in model.features(x)] == [8, 16, 32]


def test_convolutions_in_slabs_are_the_same(monkeypatch):
    model, x = small(), mx.random.normal((1, 24, 16, 16, 1))
    whole = model(x)
    rows = 5  # or 2 of 16 channels
    monkeypatch.setattr(na_unetr_blocks, "_UNFOLDED", 27 * 16 * 16 * 8 * rows)
    np.testing.assert_allclose(model(x), whole, atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(mx.float16, 0.03), (mx.bfloat16, 0.2)])
def test_half_precision(dtype, tolerance):
    model, x = small(), mx.random.normal((1, 32, 32, 32, 1))
    full = model(x)
    model.set_dtype(dtype)
    half = model(x.astype(dtype))
    assert half.dtype == dtype
    assert mx.abs(half - full).max() < tolerance * mx.abs(full).max()


def test_a_batch_of_no_volumes():
    y = small()(mx.zeros((0, 8, 9, 8, 1)))  # whose maps are smaller than a window
    mx.eval(y)
    assert y.shape[:4] == (0, 8, 9, 8)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"must be \[batch, depth, height, width, 1\] but"):
        small()(mx.zeros((16, 16, 16, 1)))
    with pytest.raises(ValueError, match="'merging' must be one of all, published but got 'some'"):
        small(merging="some")
    with pytest.raises(ValueError, match="'num_heads' must have one entry per level"):
        small(num_heads=(1,))


def test_save_load_and_train(tmp_path):
    model = small(dilations=((2,), (1, 2)), kernel_size=(3, 5, 3))
    model.record = get_record("na_unetr_pico")
    folder = model.save_pretrained(tmp_path / "model")
    files = ["SHA256SUMS", "config.json", "model.safetensors"]  # nothing on preparing images
    assert sorted(path.name for path in folder.iterdir()) == files
    again = NAUNETR.from_pretrained(folder)
    x = mx.random.normal((2, 16, 24, 16, 1))
    assert mx.array_equal(again(x), model(x)) and again.config == model.config
    model.train()
    gradients = nn.value_and_grad(model, lambda x: model(x).square().sum())(x)[1]
    gradients = dict(tree_flatten(gradients))
    assert [name for name, value in gradients.items() if not mx.any(value != 0).item()] == []
    text = str(card.model_card(again, "me/mine"))
    assert "segment_volume(" in text and "pipeline_tag: image-segmentation" in text

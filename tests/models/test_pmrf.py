"""PMRF against upstream's intermediates, its key list, its files: safetensors and Lightning's."""

import gzip
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from natten_zoo import create_model, get_record
from natten_zoo.models import PMRF, HDiTConfig, PMRFConfig
from natten_zoo.models.cost import count_cost, count_parameters
from natten_zoo.models.swinir import MEAN, pixel_unshuffle
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.load import load_weights
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import Checkpoint, read_checkpoint
from natten_zoo.tasks.samplers import flow
from tests.pretrained.conftest import Tensor, save_torch

DATA = Path(__file__).parents[1] / "fixtures/pmrf"
KEYS = json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))
NAME = "pmrf_blind_face_restoration"
CONFIG = PMRFConfig(
    {"widths": (32, 48), "depths": (1, 2), "head_dims": 16, "mapping_dim": 40},
    embed_dim=24,
    depths=(2, 2),
    num_heads=2,
)
# What is in the state dict of a module and not among its parameters.
BUFFERS = ("time_emb.weight", "aug_emb.weight", "pos_emb.freqs")


@pytest.fixture(scope="module")
def given():
    with np.load(DATA / "tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(given):
    """In the order of upstream's state dict."""
    halves = {
        name.removeprefix("bf16::"): (value.astype(np.uint32) << 16).view(np.float32)
        for name, value in given.items()
        if name.startswith("bf16::")
    }
    floats = {k.removeprefix("param::"): v for k, v in given.items() if k.startswith("param::")}
    order = [name for name in given if name.startswith(("bf16::", "param::"))]
    both = halves | floats
    return {name.partition("::")[2]: both[name.partition("::")[2]] for name in order}


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("pmrf") / "model.safetensors"
    tables = {
        "mmse_model.layers.0.residual_group.blocks.1.attn_mask": np.zeros((64, 64, 64), np.float32)
    }
    save_file(weights | tables, path)
    model = PMRF(CONFIG)
    load_weights(model, path)
    return model.eval()


def error(ours, given, name):
    """Largest difference from what is kept, every 23rd number, relative to the largest."""
    ours = np.array(ours)
    channels_last = ours.ndim == 4 and not name.startswith(("swinir.layer", "swinir.norm"))
    ours = ours.transpose(0, 3, 1, 2) if channels_last else ours
    theirs = given[f"out::{name}"]
    return np.abs(ours.reshape(-1)[::23] - theirs).max() / np.abs(theirs).max()


def test_every_stage_is_upstreams(model, given):
    y = mx.array(given["y"].transpose(0, 2, 3, 1))
    net, found = model.mmse_model, {}
    found["swinir.conv_first"] = first = net.conv_first(pixel_unshuffle(y - mx.array(MEAN), 8))
    x = net.patch_embed["norm"](first)
    found["swinir.layer0"] = net.layers[0](x)
    for index, block in enumerate(net.layers[0].residual_group["blocks"]):
        found[f"swinir.layer0.block{index}"] = x = block(x)
    found["swinir.norm"] = body = net.body(first)
    found["swinir.conv_after_body"] = net.conv_after_body(body)
    found["mmse_unclipped"] = mean = model(y)
    noise = np.random.RandomState(51).standard_normal((1, 3, 128, 128)).astype(np.float32)
    noise = mx.array(noise.transpose(0, 2, 3, 1))
    found["source_sample"] = source = mx.clip(mean, 0, 1) + model.config.noise_std * noise
    found["velocity"] = model.velocity(source, mx.array([0.37]))
    steps = [*flow(lambda x, t: model.velocity(x, mx.array([t])), source, 5)]
    found["x_seq.1"], found["x_seq.5"] = steps[0], steps[-1]
    assert found.keys() == {k.removeprefix("out::") for k in given if k.startswith("out::")}
    assert {name: e for name in found if (e := error(found[name], given, name)) > 1e-5} == {}


def test_parameters_are_upstreams():
    model, record = create_model(NAME).eval(), get_record(NAME)
    zeros = {name: mx.zeros(shape) for name, shape in KEYS.items()}
    assert {k: v.shape for k, v in tree_flatten(model.parameters())} == {
        k: v.shape for k, v in model.sanitize(zeros).items()
    }
    assert count_parameters(model.model) == 160_460_210
    assert count_parameters(model.mmse_model) == 15_792_587
    image = mx.zeros((1, 512, 512, 3))
    mean, step = count_cost(model, image), count_cost(model.model, image, mx.zeros(1))
    assert mean.params == record.params == 160_460_210 + 15_792_587
    assert mean.macs + 25 * step.macs == round(record.gmacs * 1e9)
    assert infer(Checkpoint(Path("x.safetensors"), zeros, "torch"), None).name == NAME


def lightning(weights, shadows, **beside):
    """A checkpoint as Lightning writes it, with torch_ema's state and networks for measuring."""
    state = {name: Tensor(value) for name, value in weights.items()}
    state["fid.inception.conv.weight"] = Tensor(np.ones((2, 2, 3, 3)))
    averaged = {
        "decay": 0.9999,
        "num_updates": 5,
        "shadow_params": shadows,
        "collected_params": None,
    }
    return {
        "epoch": 3,
        "state_dict": state,
        "ema": averaged,
        "hyper_parameters": {"stage": "flow", "arch": "hdit_ImageNet256Sp4"},
        **beside,
    }


@pytest.mark.parametrize("averaged", [True, False])
def test_a_checkpoint_of_lightning(weights, tmp_path, averaged):
    """The averaged weights have no names: they are the flow's parameters in their order."""
    own = [k for k in weights if k.startswith("model.") and not k.endswith(BUFFERS)]
    shadows = [Tensor(weights[name] + 1) for name in own]
    path = save_torch(tmp_path / "epoch=3.ckpt", lightning(weights, shadows))
    found = read_checkpoint(path, ema=averaged)
    assert found.metadata["hyper_parameters"]["stage"] == "flow"
    for name, value in weights.items():
        shift = float(averaged and name in own)
        np.testing.assert_array_equal(found.weights[name], np.float32(value + shift), err_msg=name)
    model = PMRF(CONFIG)
    load_weights(model, path)  # the networks for measuring are left out
    expected = weights["model.out_norm.scale"] + 1
    np.testing.assert_array_equal(model.model.out_norm.scale, expected)
    np.testing.assert_array_equal(model.model.time_emb.weight, weights["model.time_emb.weight"])


@pytest.mark.parametrize("damage", [lambda shadows: shadows[1:], lambda shadows: shadows[::-1]])
def test_averaged_weights_in_another_order_are_refused(weights, tmp_path, damage):
    own = [k for k in weights if k.startswith("model.") and not k.endswith(BUFFERS)]
    shadows = damage([Tensor(weights[name]) for name in own])
    path = save_torch(tmp_path / "x.ckpt", lightning(weights, shadows))
    with pytest.raises(CheckpointError, match="averaged weights, a list, are not in the order"):
        read_checkpoint(path)
    assert "model.out_norm.scale" in read_checkpoint(path, ema=False).weights


def test_save_and_load(model, tmp_path):
    again = PMRF.from_pretrained(model.save_pretrained(tmp_path / "model"))
    image = mx.random.uniform(shape=(1, 64, 128, 3))
    assert again.config == model.config
    assert mx.array_equal(again(image), model(image))
    time = mx.array([0.5])
    assert mx.array_equal(again.velocity(image, time), model.velocity(image, time))
    half = PMRF.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert half.model.time_emb.weight.dtype == mx.float32
    assert half.mmse_model.norm.weight.dtype == mx.bfloat16


def test_bad_input_is_refused(model):
    with pytest.raises(
        ValueError, match="'x' must have sides that are multiples of 64 but got 64x96"
    ):
        model(mx.zeros((1, 64, 96, 3)))
    with pytest.raises(ValueError, match=r"'x' must be \[batch, height, width, 3\]"):
        model(mx.zeros((1, 64, 64, 1)))
    with pytest.raises(ValueError, match="'num_heads' must divide 'embed_dim' but got 7 and 180"):
        PMRFConfig(num_heads=7)
    with pytest.raises(ValueError, match="'window_size' must be a positive integer but got 0"):
        PMRFConfig(window_size=0)
    with pytest.raises(ValueError, match="'flow' must have 3 channels, no labels"):
        PMRFConfig(HDiTConfig(num_labels=3))
    with pytest.raises(TypeError, match="'flow' must be an HDiTConfig or a mapping but got int"):
        PMRFConfig(3)

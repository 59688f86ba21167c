"""Our models against the outputs of upstream's code; data/README.md says how they were made."""

import gzip
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model
from natten_zoo.models import NAT, DiNAT, DiNAT_s, IsotropicNAT, NATConfig
from natten_zoo.pretrained.readers.reader import read_checkpoint
from natten_zoo.pretrained.strict import load_strict
from tests import formula

DATA = Path(__file__).parents[1] / "fixtures"
CLASSES = {"NAT": NAT, "DiNAT": DiNAT, "DiNAT_s": DiNAT_s, "NATIsotropic": IsotropicNAT}
TINY = sorted(path.stem for path in (DATA / "models/tiny").glob("*.npz"))
FULL = ("nat_mini", "dinat_small", "dinat_s_tiny", "nat_isotropic_small")


def error(ours, theirs) -> float:
    """Largest difference relative to the scale of the expected values."""
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def arrays(data, prefix):
    return {k.removeprefix(prefix): mx.array(data[k]) for k in data if k.startswith(prefix)}


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    with np.load(DATA / f"models/tiny/{request.param}.npz") as file:
        data = dict(file)
    meta = json.loads(str(data["meta"]))
    arguments = {k: v for k, v in meta["kwargs"].items() if k != "layer"}
    if arguments.get("dilation", 1) is None:  # as upstream spells full attention
        del arguments["dilation"]
    cls = CLASSES[meta["cls"]]
    model = cls(cls.Config.from_dict(arguments)).eval()
    load_strict(model, cls.sanitize(arrays(data, "param::")))
    return model, data


def nhwc(data):
    return mx.array(data["input"].transpose(0, 2, 3, 1))


def test_tiny_stages(tiny):
    model, data = tiny
    x = model.patch_embed(nhwc(data))
    assert error(x, data["out::patch_embed"]) < 1e-5
    for i, stage in enumerate(model["levels" if "levels" in model else "layers"]):
        x = stage(x)
        x = x[0] if isinstance(x, tuple) else x
        assert error(x, data[f"out::stage{i}"]) < 1e-5, f"stage {i}"
    assert error(model.norm(x).flatten(), data["out::norm"].ravel()) < 1e-5


def test_tiny_outputs(tiny):
    model, data = tiny
    assert error(model.forward_features(nhwc(data)), data["features"]) < 1e-5
    assert error(model(nhwc(data)), data["logits"]) < 1e-5


def test_tiny_gradients(tiny):
    model, data = tiny
    x, label = nhwc(data), mx.array(data["label"])

    def loss_of(model):
        return nn.losses.cross_entropy(model(x), label, reduction="mean")

    loss, grads = nn.value_and_grad(model, loss_of)(model)
    grads = dict(tree_flatten(grads))
    expected = type(model).sanitize(arrays(data, "grad::"))
    assert abs(loss.item() - data["loss"]) < 1e-5
    assert grads.keys() == expected.keys()
    scale = max(mx.abs(value).max().item() for value in expected.values())
    for name, value in expected.items():
        assert mx.abs(grads[name] - value).max() < 1e-5 * scale, name
        # Sums over all tokens nearly cancel in some biases, which leaves fewer digits.
        assert error(grads[name], value) < 3e-5, name


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    keys = json.loads(gzip.decompress((DATA / "models/keys.json.gz").read_bytes()))[name]
    weights = {key: mx.array(formula.tensor(key, tuple(shape))) for key, shape in keys.items()}
    model = create_model(name).eval()
    load_strict(model, model.sanitize(weights))
    with np.load(DATA / f"models/full/{name}.npz") as file:
        data = dict(file)
    side = int(data["res"])
    x = mx.array(formula.image(int(data["input_seed"]), (1, 3, side, side)).transpose(0, 2, 3, 1))
    assert error(model(x), data["logits"]) < 1e-4
    embedded = np.asarray(model.patch_embed(x))
    got = [embedded.mean(), embedded.std(ddof=1), np.abs(embedded).max()]
    np.testing.assert_allclose(got, data["fp::patch_embed"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["nat-tiny-random", "dinat-ls-tiny-random"])
def test_hugging_face(name):
    checkpoint = read_checkpoint(DATA / "pretrained" / name)
    model = NAT(NATConfig.from_huggingface(checkpoint.config)).eval()
    load_strict(model, model.sanitize(checkpoint.weights))
    with np.load(DATA / f"models/hf/{name}.npz") as file:
        data = dict(file)
    assert error(model(nhwc(data)), data["logits"]) < 1e-4
    for i, ours in enumerate(model.features(nhwc(data))):
        gain, bias = (
            mx.array(data[f"backbone_norm::hidden_states_norms.stage{i + 1}.{part}"])
            for part in ("weight", "bias")
        )
        ours = mx.fast.layer_norm(ours, gain, bias, 1e-5).transpose(0, 3, 1, 2)
        assert error(ours, data[f"backbone_feature::{i}"]) < 1e-4, f"stage {i}"

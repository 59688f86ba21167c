"""All-In-One against upstream's outputs, with trained and with generated weights; its parts.

The trained weights are MIT-licensed but not in the repository. NATTEN_ZOO_ALLIN1 names a folder
with all-in-one-mlx's `harmonix-fold0_mlx.npz` and upstream's outputs, `fold0_T600.npz`.
"""

import gzip
import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import sys
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models, ops
from natten_zoo.models import NAT, AllInOne, AllInOneConfig
from natten_zoo.models.cost import count_cost
from natten_zoo.models.nat import NATConfig
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import Checkpoint, read_checkpoint
from natten_zoo.pretrained.strict import load_strict
from natten_zoo.tasks.music import analyze, average
from tests import formula

DATA = Path(__file__).parents[1] / "fixtures/allin1"
KEYS = json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))
TRAINED = os.environ.get("NATTEN_ZOO_ALLIN1")


def error(ours, theirs) -> float:
    return np.abs(np.asarray(ours) - theirs).max()


def upstream_weights():
    """Formula weights in upstream's names and layouts."""
    return {key: mx.array(formula.tensor(key, tuple(shape))) for key, shape in KEYS.items()}


def small(seed=0, **changes):
    mx.random.seed(seed)
    return AllInOne(AllInOneConfig.from_dict({"depth": 2, **changes})).eval()


@pytest.fixture(scope="module")
def full():
    model = create_model("harmonix-fold0").eval()
    load_strict(model, model.sanitize(upstream_weights()))
    return model


@pytest.mark.weights
@pytest.mark.skipif(not TRAINED, reason="NATTEN_ZOO_ALLIN1 names no folder of trained weights")
def test_parity_with_trained_weights():
    model = AllInOne.from_pretrained(Path(TRAINED) / "harmonix-fold0_mlx.npz")
    assert model.record == get_record("harmonix-fold0")
    with np.load(Path(TRAINED) / "fold0_T600.npz") as file:
        data = dict(file)
    x = mx.array(np.abs(formula.image(int(data["input_seed"]), (1, 4, 600, 81))))
    embeddings = mx.unflatten(model.forward_features(x), -1, (4, -1)).swapaxes(1, 2)
    assert error(embeddings, data["embeddings"]) < 1e-4
    logits = model(x)
    for name in ("beat", "downbeat", "section"):
        assert error(getattr(logits, name), data[f"logits_{name}"]) < 1e-4, name
    assert error(logits.function.swapaxes(1, 2), data["logits_function"]) < 1e-4


def test_parity_with_generated_weights(full):
    with np.load(DATA / "formula.npz") as file:
        data = dict(file)
    x = mx.array(np.abs(formula.image(int(data["input_seed"]), (1, 4, 120, 81))))
    embeddings = mx.unflatten(full.forward_features(x), -1, (4, -1)).swapaxes(1, 2)
    assert error(embeddings[:, :, ::8], data["embeddings"]) < 1e-4
    logits = full(x)
    for name in ("beat", "downbeat", "section"):
        assert error(getattr(logits, name), data[name]) < 1e-4, name
    assert error(logits.function.swapaxes(1, 2), data["function"]) < 1e-4


def test_parameters_are_upstreams(full):
    assert len(KEYS) == 491
    assert len(tree_flatten(full.parameters())) == 491
    record = get_record("harmonix-fold0")
    cost = count_cost(full, mx.zeros((1, 4, 6000, 81)))
    assert cost.params == record.params == 300_631
    assert cost.macs == round(record.gmacs * 1e9)


def test_dilations_reach_2048(full):
    time = [(b.timelayer.attn, b.timelayer.attn2) for b in full.layers]
    reach = [tuple(a.neighborhood.dilation[0] for a in pair) for pair in time]
    assert reach == [(2**i, 2 ** (i + 1)) for i in range(11)]


def attention(layer, x, dilation):
    """Dilated attention over one sequence `[T, D]`, in loops and float64."""
    heads, kernel = layer.num_heads, layer.neighborhood.kernel_size[0]
    weights = {k: np.array(v, np.float64) for k, v in tree_flatten(layer.parameters())}
    query, key, value = (
        (x @ weights[f"{k}.weight"].T + weights[f"{k}.bias"]).reshape(len(x), heads, -1)
        for k in ("query", "key", "value")
    )
    out = np.zeros_like(value)
    for i in range(len(x)):
        # The window slides within the frames of the query's own phase.
        phase = np.arange(i % dilation, len(x), dilation)
        first = np.clip(i // dilation - kernel // 2, 0, len(phase) - kernel)
        window = phase[first : first + kernel]
        for head in range(heads):
            bias = weights["rpb"][head, (window - i) // dilation + kernel - 1]
            logits = key[window, head] @ query[i, head] / math.sqrt(query.shape[-1]) + bias
            shares = np.exp(logits - logits.max())
            out[i, head] = shares / shares.sum() @ value[window, head]
    return out.reshape(len(x), -1) @ weights["proj.weight"].T + weights["proj.bias"]


def norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.array(layer.weight, np.float64) + np.array(layer.bias, np.float64)


@pytest.mark.parametrize("frames", [45, 37, 9])
def test_double_attention_by_hand(full, frames):
    """Both attentions see the zeros that the wider one needs: 5 * 4 * 2 = 40 frames."""
    layer = full.layers[2].timelayer
    x = formula.image(1, (frames, 24)).astype(np.float64)
    y = np.pad(norm(layer.norm1, x), ((0, max(0, 40 - frames)), (0, 0)))
    near = x + attention(layer.attn, y, 4)[:frames]
    far = x + attention(layer.attn2, y, 8)[:frames]
    fed = norm(layer.norm2, np.concatenate([near, far], -1))
    fed = layer.mlp(mx.array(fed.astype(np.float32)))
    expected = (near + far) / 2 + np.array(fed)
    got = layer(mx.array(x.astype(np.float32))[None])[0]
    assert error(got, expected) < 1e-4


def test_any_number_of_frames(full):
    for frames in (1, 4, 30):
        logits = full(mx.array(formula.image(2, (2, 4, frames, 81))))
        assert [value.shape for value in logits] == [(2, frames)] * 3 + [(2, frames, 10)]
        assert all(mx.isfinite(value).all() for value in logits)


def test_samples_do_not_mix_but_stems_do():
    model = small()
    x = mx.random.normal((2, 4, 50, 81))
    np.testing.assert_allclose(model(x).beat[1:], model(x[1:]).beat, atol=1e-5)
    changed = mx.array(x)
    changed[:, 3] = 0.0
    first = [model.features(y)[-1][:, 0] for y in (x, changed)]
    assert error(*first) > 1e-3


def test_both_layouts_of_weights_are_known(full):
    upstream = upstream_weights()
    mlx = {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in upstream.items()}
    ours = dict(tree_flatten(full.parameters()))
    for weights in (upstream, mlx):
        sanitized = AllInOne.sanitize(weights)
        assert sanitized.keys() == ours.keys()
        assert all(mx.array_equal(sanitized[name], value) for name, value in ours.items())


def test_npz_files(tmp_path, full):
    path = tmp_path / "my_harmonix-fold3.npz"
    np.savez(path, **{k: np.array(v) for k, v in upstream_weights().items()})
    model = AllInOne.from_pretrained(path)
    assert model.record is get_record("harmonix-fold3")
    x = mx.array(formula.image(3, (1, 4, 20, 81)))
    assert mx.array_equal(model(x).section, full(x).section)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"no valid \.npz file"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"no valid \.npz file"):
        read_checkpoint(path)


def test_which_fold_is_told_by_name_only():
    weights = {name: mx.zeros(shape) for name, shape in KEYS.items()}
    path = Path("harmonix-fold5-x4z5zeef.pth")
    assert infer(Checkpoint(path, weights, "torch"), None).name == "harmonix-fold5"
    with pytest.raises(CheckpointError, match="harmonix-fold0, harmonix-fold1"):
        infer(Checkpoint(Path("model.pth"), weights, "torch"), None)
    foreign = dict(tree_flatten(NAT(NATConfig(8, (1,), (1,))).parameters()))
    with pytest.raises(CheckpointError, match="names are those of no known model"):
        infer(Checkpoint(Path("x.pth"), foreign, "torch"), AllInOne)


def test_eight_folds():
    names = list_models("harmonix-fold*", pretrained=True)
    assert names == [f"harmonix-fold{i}" for i in range(8)]
    assert len({get_record(name).url for name in names}) == 8
    models = [small(seed) for seed in range(3)]
    x = mx.random.normal((1, 4, 40, 81))
    expected = [sum(model(x)[i] for model in models) / 3 for i in range(4)]
    for got, value in zip(average(models, x), expected, strict=True):
        np.testing.assert_allclose(got, value, atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"must be \[batch, 4 stems, frames, 81 bands\] but got"):
        small()(mx.zeros((1, 81, 50, 4)))
    with pytest.raises(ValueError, match="there must be models, and spectrograms"):
        analyze([], np.zeros((4, 50, 81)))
    with pytest.raises(ValueError, match="there must be models, and spectrograms"):
        analyze(small(), np.zeros((4, 0, 81)))
    with pytest.raises(ValueError, match=r"'num_bands' must be in 80\.\.106"):
        AllInOneConfig(num_bands=79)
    for bands in (80, 106):
        assert small(num_bands=bands)(mx.zeros((1, 4, 9, bands))).beat.shape == (1, 9)


def test_save_load_and_other_functions(tmp_path):
    model = small()
    model.reset_classifier(3)
    again = AllInOne.from_pretrained(model.save_pretrained(tmp_path / "model"))
    x = mx.random.normal((1, 4, 20, 81))
    assert again(x).function.shape == (1, 20, 3)
    assert mx.array_equal(again(x).function, model(x).function)


def test_gradients_reach_every_parameter():
    model = small()
    x = mx.random.normal((1, 4, 40, 81))

    def loss(parameters):
        model.update(parameters)
        return sum(value.square().mean() for value in model(x))

    gradients = dict(tree_flatten(mx.grad(loss)(model.parameters())))
    # Keys' biases move all logits of a query alike, which the softmax ignores.
    unmoved = [k for k, v in gradients.items() if not mx.any(v != 0).item()]
    assert [name for name in unmoved if not name.endswith("key.bias")] == []


@pytest.fixture
def natten_mlx(monkeypatch):
    """natten-mlx's module of the same operators, by our names."""
    names = "na1d_qk_rpb", "na1d_av_fused", "na2d_qk_rpb", "na2d_av_fused"
    module = types.ModuleType("natten_mlx.extras.allin1")
    vars(module).update({name: getattr(ops, name) for name in names})
    for name in ("natten_mlx", "natten_mlx.extras"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_code_written_for_natten_mlx_runs_unchanged(natten_mlx):
    from natten_mlx.extras.allin1 import (
        na1d_av_fused,
        na1d_qk_rpb,
        na2d_av_fused,
        na2d_qk_rpb,
    )

    x1, x2 = mx.random.normal((2, 60, 2, 12)), mx.random.normal((2, 5, 30, 2, 12))
    bias1, bias2 = mx.random.normal((2, 9)), mx.random.normal((2, 9, 9))
    scale = 12**-0.5
    logits = na1d_qk_rpb(x1, x1, bias1, 5, 8, scale=scale)
    assert logits.shape == (2, 60, 2, 5)
    out = na1d_av_fused(mx.softmax(logits, -1), x1, 5, 8)
    np.testing.assert_allclose(out, ops.na1d(x1, x1, x1, 5, dilation=8, rpb=bias1), atol=1e-5)
    logits = na2d_qk_rpb(x2, x2, bias2, 5, dilation=1, scale=scale)
    assert logits.shape == (2, 5, 30, 2, 25)
    out = na2d_av_fused(mx.softmax(logits, -1), x2, 5, dilation=1)
    np.testing.assert_allclose(out, ops.na2d(x2, x2, x2, 5, rpb=bias2), atol=1e-5)
    # Without a scale there is none: callers have scaled the query.
    unscaled = na2d_qk_rpb(x2 * scale, x2, bias2, 5)
    np.testing.assert_allclose(unscaled, logits, atol=1e-5)
    for qk, av in ((na1d_qk_rpb, na1d_av_fused), (na2d_qk_rpb, na2d_av_fused)):
        assert list(inspect.signature(qk).parameters) == [
            "query", "key", "rpb", "kernel_size", "dilation", "scale",
        ]  # fmt: skip
        assert inspect.signature(qk).parameters["scale"].kind == inspect.Parameter.KEYWORD_ONLY
        assert list(inspect.signature(av).parameters) == [
            "attn", "value", "kernel_size", "dilation",
        ]  # fmt: skip


@pytest.fixture
def all_in_one_mlx(natten_mlx, monkeypatch):
    """all-in-one-mlx's model as it is published, without what it needs for audio."""
    spec = importlib.util.find_spec("allin1_mlx")
    if spec is None:
        pytest.skip("needs pip install --no-deps all-in-one-mlx")
    (folder,) = spec.submodule_search_locations
    stubs = {
        "allin1_mlx": {"__path__": [folder]},
        "allin1_mlx.models": {"__path__": [f"{folder}/models"]},
        "allin1_mlx.config": {"Config": object},
        "allin1_mlx.typings": {"AllInOneOutput": types.SimpleNamespace},
    }
    for name, contents in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("allin1_mlx.models.allinone_mlx")
    for name in [name for name in sys.modules if name.startswith("allin1_mlx.models.")]:
        del sys.modules[name]


def test_all_in_one_mlx_runs_unchanged(all_in_one_mlx, full):
    config = types.SimpleNamespace(
        model="allinone", depth=11, dim_embed=24, dim_input=81, num_heads=2, kernel_size=5,
        dilation_factor=2, dilation_max=3200, mlp_ratio=4, layer_norm_eps=1e-5, qkv_bias=True,
        act_conv="elu", act_transformer="gelu", drop_conv=0, drop_hidden=0, drop_attention=0,
        drop_path=0, drop_last=0, double_attention=True, instrument_attention=True,
        data=types.SimpleNamespace(num_instruments=4, num_labels=10),
    )  # fmt: skip
    model = all_in_one_mlx.AllInOneMLX(config)
    model.eval()
    weights = upstream_weights().items()
    model.load_weights([(k, v.transpose(0, 2, 3, 1) if v.ndim == 4 else v) for k, v in weights])
    x = mx.array(formula.image(5, (1, 4, 50, 81)))
    theirs, ours = model(x), full(x)
    for name in ("beat", "downbeat", "section"):
        assert error(getattr(ours, name), getattr(theirs, f"logits_{name}")) < 1e-5, name
    assert error(ours.function.swapaxes(1, 2), theirs.logits_function) < 1e-5

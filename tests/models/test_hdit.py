"""HDiT against k-diffusion's intermediates, files in its formats, levels of every kind."""

import gzip
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from natten_zoo import create_model, get_record, load_pretrained
from natten_zoo.layers.windows import window_attention
from natten_zoo.models import HDiT, HDiTConfig
from natten_zoo.models.cost import count_cost
from natten_zoo.models.hdit_layers import rotary_angles
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.tasks import sample
from natten_zoo.tasks.fidelity import look
from natten_zoo.tasks.samplers import SAMPLERS, karras_schedule
from tests.pretrained.conftest import Tensor, save_torch

DATA = Path(__file__).parents[1] / "fixtures/hdit"
KEYS = json.loads(gzip.decompress((DATA / "keys_oxford_flowers.json.gz").read_bytes()))
# As k-diffusion's own files have it; it adds a label that stands for none.
PUBLISHED = {
    "model": {
        "type": "image_transformer_v2",
        "input_channels": 3,
        "input_size": [32, 48],
        "patch_size": [2, 2],
        "widths": [32, 64],
        "depths": [2, 2],
        "self_attns": [
            {"type": "neighborhood", "d_head": 16, "kernel_size": 7},
            {"type": "global", "d_head": 16},
        ],
        "mapping_width": 32,
        "sigma_data": 0.5,
        "sigma_min": 0.02,
        "sigma_max": 20.0,
    },
    "dataset": {"num_classes": 4},
}


@pytest.fixture(scope="module")
def given():
    with np.load(DATA / "tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(given):
    start = "param::"
    return {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("hdit") / "tiny.safetensors"
    save_file(weights, path, {"config": json.dumps(PUBLISHED)})
    return HDiT.from_pretrained(path)


def error(ours, given, name):
    """Largest difference from a stage, relative to the largest; every 7th number is kept."""
    theirs = given[f"out::{name}"]
    ours = np.array(ours)
    if ours.ndim == 4 and ours.shape[-1] == 3:
        ours = ours.transpose(0, 3, 1, 2)
    ours = ours.reshape(-1)[::7] if ours.size > 4000 else ours
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def inputs(given):
    return (
        mx.array(given["x"].transpose(0, 2, 3, 1)),
        mx.array(given["sigma"]),
        mx.array(given["cls"]),
    )


def small(**changes):
    mx.random.seed(0)
    values = {"widths": (16, 32), "depths": (2, 1), "head_dims": 16, "patch": (2, 2)}
    model = HDiT(HDiTConfig(**{"kernel_sizes": 3, "mapping_dim": 32, **values, **changes}))
    # A fresh one returns zeros.
    drawn = [
        (name, mx.random.normal(value.shape, scale=0.1))
        for name, value in tree_flatten(model.parameters())
        if not mx.any(value).item()
    ]
    return model.load_weights(drawn, strict=False).eval()


def test_every_stage_is_k_diffusions(model, given):
    x, sigma, labels = inputs(given)
    found = {
        "patch_in": model.patch_in(x),
        "time_emb": model.time_emb(mx.log(sigma)[:, None] / 4),
        "aug_emb": model.aug_emb(mx.zeros((2, 9))),
        "mapping": model.conditioning(sigma, labels),
    }
    cond = found["mapping"]
    first, second = model.down_levels[0]
    x = found["patch_in"] + first.self_attn(found["patch_in"], cond)
    found["down0.0.self_attn"] = x
    x = x + first.ff(x, cond)
    found["down0.0.ff"] = x
    found["down0"] = skip = second(x, cond)
    found["merge0"] = x = model.merges[0](skip)
    for layer in model.mid_level:
        x = layer(x, cond)
    found["mid_level"] = x
    found["split0"] = x = model.splits[0](x, skip)
    for layer in model.up_levels[0]:
        x = layer(x, cond)
    found["up0"] = x
    found["out_norm"] = x = model.out_norm(x)
    found["out"] = model.patch_out(x)
    assert mx.array_equal(found["out"], model(*inputs(given)))
    assert {name: e for name in found if (e := error(found[name], given, name)) > 1e-5} == {}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_k_diffusions(model, given, name):
    x, _, labels = inputs(given)
    sigmas = [float(sigma) for sigma in given["out::sampler.sigmas"]]
    np.testing.assert_allclose(karras_schedule(4, 0.02, 20.0), sigmas, rtol=1e-6)

    def denoise(x, sigma):
        return model.denoise(x, mx.full((2,), sigma), labels)

    first = denoise(x * sigmas[0], sigmas[0])
    assert error(first, given, "sampler.denoised_first") < 1e-5
    *_, last = SAMPLERS[name](denoise, x * sigmas[0], sigmas)
    assert error(last, given, f"sampler.sample_{name}") < 1e-4


@pytest.mark.parametrize("averaged", [True, False])
def test_a_training_checkpoint_of_k_diffusion(weights, given, model, tmp_path, averaged):
    """Averaged weights are preferred; names may have the denoiser's before them."""
    raw = {f"inner_model.{k}": Tensor(v + 1) for k, v in weights.items()}
    mean = {f"inner_model.{k}": Tensor(v) for k, v in weights.items()}
    parts = {"config": PUBLISHED, "model": raw, "model_ema": mean, "step": 7}
    path = save_torch(tmp_path / "run_00000007.pth", parts)
    loaded = load_pretrained(None, path, ema=averaged)
    assert loaded.config == model.config and loaded.record.input_size == 0
    ours, expected = (dict(tree_flatten(m.parameters())) for m in (loaded, model))
    shift = 0 if averaged else 1
    assert all(np.allclose(ours[k], np.array(v) + shift) for k, v in expected.items())


def test_a_folder_with_the_configuration_beside_the_weights(weights, model, given, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert mx.array_equal(HDiT.from_pretrained(tmp_path)(*inputs(given)), model(*inputs(given)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "image_v1"}, "must be an image_transformer_v2 without variance"),
        ({"has_variance": True}, "without variance"),
        ({"widths": 3}, "k-diffusion configuration is wrong"),
        ({"widths": [32, 64, 128]}, "'depths' must be one per level, 3,"),
        ({"self_attns": [{"type": "none"}, {"type": "odd"}]}, "'attentions' must be among"),
        ({"d_ffs": [0, 1]}, "'hidden_dims' must be positive integers"),
        ({"sigma_max": 0.0}, "'sigma_min' must be positive and below"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_named(weights, tmp_path, change, message):
    config = {**PUBLISHED, "model": {**PUBLISHED["model"], **change}}
    save_file(weights, tmp_path / "x.safetensors", {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(None, tmp_path / "x.safetensors")


def test_parameters_are_k_diffusions():
    model, record = create_model("hdit_oxford_flowers").eval(), get_record("hdit_oxford_flowers")
    zeros = {name: mx.zeros(shape) for name, shape in KEYS.items()}
    assert {k: v.shape for k, v in tree_flatten(model.parameters())} == {
        k: v.shape for k, v in model.sanitize(zeros).items()
    }
    cost = count_cost(model, mx.zeros((1, 256, 256, 3)), mx.ones(1))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))


def test_the_packaged_model():
    model, record = HDiT.from_pretrained("hdit_pico_fashion"), get_record("hdit_pico_fashion")
    cost = count_cost(model, mx.zeros((1, 28, 28, 1)), mx.ones(1), mx.array([0]))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))
    assert model.out_norm.scale.dtype == mx.float32  # it is stored in half of that
    labels = np.arange(20) % 10
    clothes = sample(model, 20, steps=8, labels=labels, batch_size=20).pixels
    assert look(load_pretrained(None, "nat_pico_fashion"), clothes).agreement(labels) >= 0.8


@pytest.mark.parametrize(("heads", "dim"), [(2, 16), (4, 64), (3, 8)])
def test_rotations_are_those_of_the_published_tables(heads, dim, given):
    cos, sin = rotary_angles(3, 5, heads, dim)
    assert cos.shape == sin.shape == (3, 5, heads, dim // 4)
    np.testing.assert_allclose(cos.square() + sin.square(), 1, rtol=1e-6)
    if (heads, dim) == (2, 16):
        table = given["param::down_levels.0.0.self_attn.pos_emb.freqs"]
        np.testing.assert_allclose(cos[0, 4, :, 2:], np.cos(0.8 * table), atol=1e-5)
        np.testing.assert_allclose(sin[0, 4, :, :2], np.sin(-0.4 * table), atol=1e-5)


@pytest.mark.parametrize("kind", ["neighborhood", "global", "shifted-window", "none"])
def test_levels_of_every_kind(kind, tmp_path):
    model = small(attentions=(kind, "global"), kernel_sizes=4)
    x = mx.random.normal((2, 16, 32, 3))
    out = model(x, mx.array([0.1, 2.0]))
    assert out.shape == x.shape and mx.isfinite(out).all()
    np.testing.assert_allclose(model(x[1:], mx.array([2.0])), out[1:], rtol=1e-4, atol=1e-5)
    again = HDiT.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert mx.array_equal(again(x, mx.array([0.1, 2.0])), out)
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert any("self_attn" in name for name in names if name.startswith("down")) == (kind != "none")


def test_one_level_and_patches_that_are_not_square():
    model = small(widths=(32,), depths=(1,), patch=(2, 4))
    assert model(mx.zeros((1, 6, 12, 3)), mx.ones(1)).shape == (1, 6, 12, 3)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_shifted_windows(shift, biased):
    """Against sums over the tokens that lie in the same cell of the shifted grid."""
    random = np.random.default_rng(shift)
    query, key, value = random.standard_normal((3, 2, 8, 12, 2, 4))
    bias = random.standard_normal((2, 16, 16)) if biased else None
    parts = (mx.array(x.astype(np.float32)) for x in (query, key, value))
    found = window_attention(
        *parts,
        4,
        shift,
        scale=0.7,
        bias=None if bias is None else mx.array(bias.astype(np.float32)),
    )
    places = [(y, x) for y in range(8) for x in range(12)]
    expected = np.zeros_like(query)
    for y, x in places:
        cell = ((y + shift) // 4, (x + shift) // 4)
        seen = [(v, u) for v, u in places if ((v + shift) // 4, (u + shift) // 4) == cell]
        at = [(v + shift) % 4 * 4 + (u + shift) % 4 for v, u in seen]
        rows, columns = (list(axis) for axis in zip(*seen, strict=True))
        logits = 0.7 * np.einsum("bhd,bnhd->bhn", query[:, y, x], key[:, rows, columns])
        if bias is not None:
            logits += bias[:, (y + shift) % 4 * 4 + (x + shift) % 4][:, at]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected[:, y, x] = np.einsum("bhn,bnhd->bhd", weights, value[:, rows, columns])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_windows_must_divide_the_map():
    x = mx.zeros((1, 6, 8, 1, 8))
    with pytest.raises(ValueError, match="'window_size' must divide the map but got 4 and 6x8"):
        window_attention(x, x, x, 4)


def test_a_fresh_model_changes_nothing():
    model = HDiT(HDiTConfig(widths=(32, 64), depths=(1, 1), patch=(1, 1), head_dims=32))
    x = mx.random.normal((2, 16, 16, 3))
    assert mx.all(model(x, mx.ones(2)) == 0)
    sigma = mx.array([1e-4, 1e4])
    skipped = model.denoise(x, sigma)
    np.testing.assert_allclose(skipped[0], x[0], rtol=1e-5)
    np.testing.assert_allclose(skipped[1], 0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_the_projections_of_the_noise(dtype):
    model = small()
    x, sigma = mx.random.normal((1, 16, 16, 3)), mx.array([0.3])
    full = model(x, sigma)
    kept = model.time_emb.weight
    model.set_dtype(getattr(mx, dtype))
    assert mx.array_equal(model.time_emb.weight, kept) and model.time_emb.weight.dtype == mx.float32
    half = model(x.astype(getattr(mx, dtype)), sigma)
    assert half.dtype == getattr(mx, dtype)
    assert mx.abs(half - full).max() < (0.02 if dtype == "float16" else 0.1) * mx.abs(full).max()
    assert model.denoise(x, sigma).dtype == mx.float32


def test_gradients_reach_every_parameter_but_the_random_projections():
    model = small(num_labels=3, cond_dim=5, attentions=("shifted-window", "neighborhood"))
    x, cond = mx.random.normal((2, 24, 24, 3)), mx.random.normal((2, 5))

    def loss(parameters):
        model.update(parameters)
        out = model(x, mx.array([0.5, 5.0]), mx.array([0, 2]), cond, mx.ones((2, 9)))
        return out.square().mean()

    gradients = dict(tree_flatten(mx.grad(loss)(model.trainable_parameters())))
    assert [name for name, value in gradients.items() if not mx.any(value != 0).item()] == []
    learned = {name for name, _ in tree_flatten(model.parameters())} - gradients.keys()
    assert learned == {"time_emb.weight", "aug_emb.weight"}


def test_bad_input_is_refused():
    model, x, sigma = small(), mx.zeros((1, 16, 16, 3)), mx.ones(1)
    with pytest.raises(ValueError, match="'x' must have sides that are multiples of 4 and 4 but"):
        model(mx.zeros((1, 16, 18, 3)), sigma)
    with pytest.raises(
        ValueError, match="'x' must give level 0 at least 3 tokens per axis but 4x8"
    ):
        model(mx.zeros((1, 4, 8, 3)), sigma)
    with pytest.raises(ValueError, match=r"'x' must be \[batch, height, width, 3\]"):
        model(mx.zeros((1, 16, 16, 1)), sigma)
    with pytest.raises(ValueError, match="'labels' must be None without them"):
        model(x, sigma, mx.array([1]))
    with pytest.raises(ValueError, match="'labels' must be given to a model that has them"):
        small(num_labels=2)(x, sigma)
    with pytest.raises(ValueError, match="'cond' must be given to a model that has them"):
        small(cond_dim=2)(x, sigma)
    windows = small(attentions=("shifted-window", "global"), kernel_sizes=4)
    with pytest.raises(
        ValueError, match="'x' must give level 0 multiples of 4 tokens per axis but"
    ):
        windows(mx.zeros((1, 20, 16, 3)), sigma)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": 32}, "'widths' must be several numbers but got 32"),
        ({"depths": (1,)}, "'depths' must be one per level, 2,"),
        ({"head_dims": 12}, "'head_dims' must be multiples of 8 that divide"),
        ({"patch": (2,)}, "'patch' must be a height and a width"),
        ({"mapping_dim": 0}, "'mapping_dim' must be a positive integer"),
        ({"mapping_dim": 33}, "'mapping_dim' must be even"),
        ({"num_labels": -1}, "'num_labels' must be an integer from 0"),
        ({"time": "days"}, "'time' must be 'log_sigma' or 'flow'"),
        ({"sigma_min": 0.0}, "'sigma_min' must be positive"),
    ],
    ids=str,
)
def test_wrong_configurations(wrong, message):
    values = {"widths": (32, 64), "depths": (1, 1), "head_dims": 16, **wrong}
    with pytest.raises(ValueError, match=rf"\[HDiTConfig\] {message}"):
        HDiTConfig.from_dict(values)

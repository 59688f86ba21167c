"""Configurations of others: what changes the computation is computed, or refused by its name."""

import json
import math

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, load_pretrained
from natten_zoo.data import Preprocess
from natten_zoo.models import NAT, DiNAT
from natten_zoo.pretrained import load_weights
from natten_zoo.pretrained.readers import CheckpointError, read_checkpoint
from natten_zoo.pretrained.translate import layout_of

from .conftest import save_torch


def arrays(model):
    return dict(tree_flatten(model.parameters()))


def same(a, b):
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def folder(tmp_path, pico_state):
    """A Hugging Face folder of the small NAT; call it with changes to its two configurations."""
    save_torch(tmp_path / "pytorch_model.bin", pico_state)
    record = get_record("nat_pico_fashion")
    config = {
        "model_type": "nat", "num_channels": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "patch_size": 4, "id2label": {"0": "a", "1": "b", "2": "c"}, "mlp_ratio": 3.0,
        **{name: record.model[name] for name in ("embed_dim", "depths", "num_heads")},
        "kernel_size": record.model["kernel_size"],
    }  # fmt: skip
    if "mlp_ratio" in record.model:
        config["mlp_ratio"] = record.model["mlp_ratio"]
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28},
        "resample": 3, "image_mean": [0.3], "image_std": [0.4],
    }  # fmt: skip

    def write(processor_changes=None, without=(), **changes):
        texts = {"config": {**config, **changes}}
        texts["preprocessor_config"] = {**processor, **(processor_changes or {})}
        for name, values in texts.items():
            values = {key: value for key, value in values.items() if key not in without}
            (tmp_path / f"{name}.json").write_text(json.dumps(values))
        return tmp_path

    return write


def test_the_folder_is_right(folder, pico):
    model = load_pretrained(None, folder())
    assert same(model, pico) and model.record.classes == ("a", "b", "c")
    assert model.record.mean == (0.3,) and model.record.crop_mode == "squash"
    assert load_pretrained(None, folder(without=("qkv_bias", "drop_path_rate"))).config.qkv_bias


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_act", name) for name in ("silu", "relu", "gelu_new", "quick_gelu", 3)),
        ("layer_norm_eps", 1e-6),
        ("layer_norm_eps", "1e-5"),
        ("patch_size", 8),
        ("patch_size", [4, 4]),
        ("pruned_heads", {"0": [1]}),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("quantization_config", {"bits": 4}),
        ("dilations", [[1, 2], [1]]),
        ("qkv_bias", "false"),
        ("qkv_bias", 0),
        ("drop_path_rate", "high"),
        ("drop_path_rate", 1.5),
        ("hidden_dropout_prob", -0.1),
        ("attention_probs_dropout_prob", [0.1]),
        ("layer_scale_init_value", "small"),
        ("layer_scale_init_value", None),
        ("layer_scale_init_value", float("nan")),
        ("id2label", {"0": "a", "2": "b"}),
        ("id2label", ["a", "b", "c"]),
        ("num_labels", 7),
        ("embed_dim", "16"),
        ("depths", 3),
        ("depths", [2, "2"]),
        ("num_heads", [0, 0]),
        ("mlp_ratio", "3"),
        ("num_channels", 0),
        ("model_type", ["nat"]),
        ("model_type", "swin"),
        ("depths", [1_000_000, 1, 1]),
    ],
)
def test_keys_of_transformers(folder, key, value):
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(None, folder(**{key: value}))
    message = str(caught.value)
    others = {"model_type": "model; those read here", "depths": "layers|depths"}
    names = {**others, "num_channels": "'in_chans'"}.get(key, f"'{key}'")
    assert any(name in message for name in names.split("|")), message
    assert key == "model_type" or "its config.json is wrong" in message
    assert "Error(" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", None), ("size", "28"), ("size", {"height": 28, "width": 20}), ("size", 100_000),
        ("size", {"shortest_edge": 28}), ("size", {"longest_edge": 28}), ("size", 28.0),
        ("size", [28, 28]), ("size", 10**400),
        ("resample", 4), ("resample", "bicubic"), ("resample", True),
        ("do_resize", False), ("do_rescale", False), ("do_normalize", False), ("do_resize", 0),
        ("rescale_factor", 1), ("rescale_factor", "1/255"), ("rescale_factor", float("nan")),
        ("do_pad", True), ("do_flip_channel_order", True), ("offset", True),
        ("image_mean", None), ("image_mean", "0.5"), ("image_mean", ["a"]), ("image_mean", []),
        ("image_std", [0.0]), ("image_std", [0.4, 0.4]), ("image_std", [math.inf]),
        ("crop_pct", "much"), ("crop_pct", 0),
        ("do_center_crop", "yes"),
        ("image_processor_type", "MobileViTImageProcessor"), ("image_processor_type", 3),
    ],
)  # fmt: skip
def test_keys_of_processors(folder, key, value):
    without = (key,) if value is None else ()
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(None, folder({key: value}, without))
    message = str(caught.value)
    named = {"image_mean": "mean", "image_std": "std"}.get(key, key)
    assert "its preprocessor_config.json is wrong" in message and named in message
    assert "Error" not in message and len(message) < 600


MEAN = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SHORT = {"shortest_edge": 256}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": 224}, {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}),
        ({"size": 224, "image_processor_type": "ViTImageProcessorFast", "resample": 3},
         {"crop_mode": "squash", "crop_pct": 1.0}),
        ({"size": SHORT, "crop_size": 224, "image_processor_type": "BitImageProcessor"}, {}),
        ({"size": 256, "crop_size": {"height": 224, "width": 224}, "resample": 3,
          "feature_extractor_type": "CLIPFeatureExtractor"}, {}),
        ({"size": {"shortest_edge": 235}, "crop_size": 224, "do_center_crop": True, "resample": 3},
         {"crop_pct": 224 / 235}),
        ({"size": SHORT, "crop_size": 224, "do_center_crop": True, "crop_pct": 0.5, "resample": 3},
         {}),
        ({"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessor"},
         {"interpolation": "bilinear"}),
        ({"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor",
          "resample": 3}, {"size": 384, "crop_mode": "squash", "crop_pct": 1.0}),
        ({"size": 224, "crop_size": 224, "image_processor_type": "DeiTImageProcessor"},
         {"crop_mode": "squash", "crop_pct": 1.0}),
    ],
)  # fmt: skip
def test_forms_of_processors(config, expected):
    assert Preprocess.from_config({**MEAN, **config}) == Preprocess(**expected)


@pytest.mark.parametrize("short", range(225, 320))
def test_a_cropped_image_was_resized_to_what_the_file_says(short):
    config = {**MEAN, "size": {"shortest_edge": short}, "crop_size": 224, "do_center_crop": True}
    assert Preprocess.from_config(config).short_side == short


def test_squashed_larger_and_then_cropped_is_refused():
    config = {"size": 256, "crop_size": 224, "image_processor_type": "DeiTFeatureExtractor"}
    with pytest.raises(ValueError, match="'size' must be a 'shortest_edge'"):
        Preprocess.from_config({**MEAN, **config})


TIMM = {
    "architecture": "nat_pico_fashion",
    "num_classes": 3,
    "global_pool": "avg",
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": {
        "input_size": [1, 28, 28], "interpolation": "bilinear", "crop_pct": 0.9,
        "crop_mode": "center", "mean": [0.3], "std": [0.4], "num_classes": 3, "classifier": "head",
    },
}  # fmt: skip


def write_timm(path, config, state):
    save_torch(path / "pytorch_model.bin", state)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_timm(tmp_path, pico, pico_state):
    model = load_pretrained(None, write_timm(tmp_path, TIMM, pico_state))
    assert same(model, pico) and model.record.classes == ("a", "b", "c")
    assert (model.record.crop_pct, model.record.interpolation) == (0.9, "bilinear")
    old = {**TIMM, **TIMM["pretrained_cfg"]}
    del old["pretrained_cfg"]
    assert load_pretrained(None, write_timm(tmp_path, old, pico_state)).record == model.record


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("", "global_pool", "max"),
        ("", "global_pool", ""),
        ("", "architecture", "resnet50"),
        ("", "label_names", ["a"]),
        ("", "model_args", {"act_layer": "silu"}),
        ("", "model_args", {"kernel_size": "many"}),
        ("", "num_classes", "3"),
        ("", "pretrained_cfg", 3),
        ("pretrained_cfg", "input_size", [1, 28, 20]),
        ("pretrained_cfg", "input_size", [3, 28, 28]),
        ("pretrained_cfg", "input_size", 28),
        ("pretrained_cfg", "input_size", [1, 100_000, 100_000]),
        ("pretrained_cfg", "crop_mode", "border"),
        ("pretrained_cfg", "crop_mode", "squash"),
        ("pretrained_cfg", "crop_pct", "all"),
        ("pretrained_cfg", "interpolation", "hamming"),
        ("pretrained_cfg", "mean", 0.5),
        ("pretrained_cfg", "std", [0]),
    ],
)
def test_keys_of_timm(tmp_path, pico_state, where, key, value):
    config = json.loads(json.dumps(TIMM))
    (config[where] if where else config)[key] = value
    with pytest.raises(CheckpointError, match=r"config\.json is wrong") as caught:
        load_pretrained(None, write_timm(tmp_path, config, pico_state))
    message = str(caught.value)
    names = {"input_size": "size", "crop_mode": "crop_", "architecture": "resnet50"}
    names["model_args"] = next(iter(value)) if isinstance(value, dict) else "model_args"
    assert names.get(key, key) in message and "Error" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", 100_000), ("input_size", "28"), ("input_size", 28.5), ("input_size", -1),
        ("crop_pct", "a"), ("crop_pct", 2), ("crop_pct", None), ("mean", "0.5"), ("mean", [None]),
        ("mean", 0.5), ("std", [0]), ("std", {}), ("num_classes", "3"), ("num_classes", -1),
        ("classes", 3), ("classes", [1, 2]), ("crop_mode", "middle"), ("crop_mode", ["center"]),
        ("interpolation", "magic"), ("interpolation", 3), ("name", 3), ("frames", "many"),
        ("spacing", 1), ("intensity", ["a", "b"]), ("top1", "good"), ("color", "red"),
    ],
)  # fmt: skip
def test_records_of_saved_folders(tmp_path, pico, key, value):
    folder = pico.save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["record"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json is wrong") as caught:
        load_pretrained(None, folder)
    assert {"input_size": "size"}.get(key, key) in str(caught.value)


@pytest.mark.parametrize("settings", [3, {}, {"bits": "4", "group_size": 64}, {"bits": 8}, [8, 64]])
def test_quantization_of_saved_folders(tmp_path, pico, settings):
    folder = pico.save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = settings or {"bits": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'quantization' must be"):
        load_pretrained(None, folder)


# Naming the model does not switch off what is known without it.


@pytest.mark.parametrize("name", ["nat_pico_fashion", "dinat_mini"])
def test_the_classifier_has_the_size_of_the_weights(tmp_path, name):
    mx.random.seed(0)
    model = create_model(name, num_classes=5)
    state = {n: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for n, v in arrays(model).items()}
    path = tmp_path / "best.safetensors"
    mx.save_safetensors(str(path), state)
    for loaded in (
        load_pretrained(None, path, model=name),
        create_model(name, pretrained=path),
        (DiNAT if "dinat" in name else NAT).from_pretrained(path),
    ):
        assert same(loaded, model) and loaded.record.num_classes == 5 and not loaded.record.classes
    changed = create_model(name, pretrained=path, num_classes=2)
    assert changed.config.num_classes == 2
    del state["head.weight"], state["head.bias"]
    mx.save_safetensors(str(path), state)
    assert load_pretrained(None, path, model=name).config.num_classes == 0


def test_a_named_model_keeps_what_its_folder_says(folder, tmp_path, pico):
    saved = NAT.from_pretrained(folder()).save_pretrained(tmp_path / "saved")
    for path in (folder(), saved):
        for model in (
            load_pretrained(None, path, model="nat_pico_fashion"),
            create_model("nat_pico_fashion", pretrained=path),
        ):
            assert same(model, pico) and model.record.classes == ("a", "b", "c")
            assert model.record.mean == (0.3,) and model.record.crop_mode == "squash"


def test_bare_weights_beside_a_processor(folder, pico):
    path = folder()
    (path / "config.json").unlink()
    model = load_pretrained(NAT, path)
    assert same(model, pico) and model.record.mean == (0.3,)


# MLX's own files.


@pytest.mark.parametrize("file", ["w.safetensors", "w.npz"])
@pytest.mark.parametrize(
    "name",
    [
        *("nat_pico_fashion", "dinat_s_tiny", "upernet_nat_mini", "nat3d_mini", "na_unetr_pico"),
        *("harmonix-fold0", "nat1d_mnist1d"),
    ],
)
def test_save_weights_is_read_back(tmp_path, file, name):
    mx.random.seed(0)
    model, other = create_model(name), create_model(name)
    model.save_weights(str(tmp_path / file))
    load_weights(other, tmp_path / file)
    assert same(model, other)


def test_layouts_are_told_from_shapes_whatever_the_file_says(tmp_path, pico, pico_state):
    theirs = {name: mx.array(tensor.array) for name, tensor in pico_state.items()}
    assert layout_of(theirs) == "torch" and layout_of(arrays(pico)) == "mlx"
    assert layout_of({"a.weight": mx.zeros((4, 3, 3, 3)), "b": mx.zeros((3, 3))}) is None
    for said in ("mlx", "pt"):
        for weights in (theirs, arrays(pico)):
            path = tmp_path / "nat_pico_fashion.safetensors"
            mx.save_safetensors(str(path), weights, {"format": said})
            assert same(load_pretrained(NAT, path), pico)


def test_layouts_of_volumes_and_clips():
    for name in ("na_unetr_pico", "nat3d_mini"):
        own = arrays(create_model(name))
        assert layout_of(own) == "mlx"
        turned = {n: mx.moveaxis(v, -1, 1) if v.ndim == 5 else v for n, v in own.items()}
        assert layout_of(turned) == "torch"


def test_foreign_names_in_the_layouts_of_mlx(data, tmp_path):
    """As converters leave them that turn convolutions and rename nothing."""
    expected = NAT.from_pretrained(data / "nat-tiny-random")
    weights = read_checkpoint(data / "nat-tiny-random").weights
    turned = {n: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for n, v in weights.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), turned)
    config = (data / "nat-tiny-random" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert same(NAT.from_pretrained(tmp_path), expected)

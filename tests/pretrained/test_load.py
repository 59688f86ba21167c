"""`from_pretrained`: which model a checkpoint is of, and that its weights arrive."""

import json
import logging
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record
from natten_zoo.models import NAT, DiNAT, IsotropicConfig, IsotropicNAT, Model
from natten_zoo.pretrained import CheckpointError, load_pretrained, load_weights


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def same(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(mx.array_equal(a[key], b[key]) for key in a)


def torch_layout(model):
    return {
        name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        for name, value in parameters(model).items()
    }


def write_foreign(path, weights):
    """A bare state dict without a word about what it is of; the reader goes by content."""
    mx.save_safetensors(str(path.with_suffix(".safetensors")), weights)
    return path.with_suffix(".safetensors").rename(path)


@pytest.mark.parametrize("name", ["nat-tiny-random", "dinat-ls-tiny-random"])
def test_hugging_face_folder_gives_the_published_logits(data, name):
    model = NAT.from_pretrained(data / name)
    expected = np.load(data.parent / "models" / "hf" / f"{name}.npz")
    logits = model(mx.array(expected["input"].transpose(0, 2, 3, 1)))
    assert np.abs(np.array(logits) - expected["logits"]).max() < 1e-4
    assert type(model).__name__ == ("NAT" if name.startswith("nat") else "DiNAT")
    assert not model.training
    assert model.record.classes[:2] == ("LABEL_0", "LABEL_1")
    assert model.record.crop_mode == "squash" and model.record.input_size == 224


def test_configuration_comes_from_hugging_face(data):
    config = DiNAT.from_pretrained(data / "dinat-ls-tiny-random").config
    assert config.embed_dim == 8 and config.depths == (2, 2, 2, 1)
    assert config.dilations == ((1, 8), (1, 4), (1, 2), (1,))
    assert config.layer_scale == 1e-5 and config.num_classes == 10


@pytest.fixture(scope="module")
def mini():
    mx.random.seed(0)
    return create_model("nat_mini", num_classes=7)


@pytest.fixture(scope="module")
def mini_file(mini, tmp_path_factory):
    return write_foreign(tmp_path_factory.mktemp("bare") / "checkpoint.pth", torch_layout(mini))


@pytest.mark.parametrize(
    ("cls", "file", "variant"),
    [
        (NAT, "checkpoint.pth", "nat_mini"),
        (DiNAT, "checkpoint.pth", "dinat_mini"),
        (NAT, "dinat_mini_in1k_224.pth", "dinat_mini"),
        (None, "nat_mini.pth", "nat_mini"),
        (None, "dinat_mini-epoch3.pth", "dinat_mini"),
        (None, "my_nat_mini_v2.pth", "nat_mini"),
    ],
)
def test_bare_weights_are_told_by_class_or_file_name(mini, mini_file, cls, file, variant):
    path = mini_file.with_name(file)
    if not path.exists():
        path.symlink_to(mini_file)
    model = load_pretrained(cls, path)
    assert model.record.name == variant and same(model, mini)
    assert model.config.num_classes == 7
    assert type(model).__name__ == get_record(variant).architecture


def test_ambiguous_bare_weights(mini, mini_file):
    for cls in (None, Model):
        with pytest.raises(CheckpointError, match=r"fit nat_mini, dinat_mini.*model='"):
            load_pretrained(cls, mini_file)
    model = load_pretrained(None, mini_file, model="dinat_mini", num_classes=7)
    assert model.record.name == "dinat_mini" and same(model, mini)


def test_timm_checkpoint_names_its_model(torch_zip, mini):
    weights = torch_layout(mini)
    tensors = {
        name: torch_zip.tensor(
            key=name, count=w.size, shape=w.shape, stride=tuple(s // 4 for s in strides(w))
        )
        for name, w in weights.items()
    }
    program = torch_zip.dictionary(
        state_dict=torch_zip.dictionary(**{f"module.{k}": v for k, v in tensors.items()}),
        arch=torch_zip.literal("dinat_mini"),
    )
    path = torch_zip.write(program, {k: np.array(w) for k, w in weights.items()})
    model = Model.from_pretrained(path)
    assert model.record.name == "dinat_mini" and same(model, mini)


def strides(array):
    return np.empty(array.shape, np.float32).strides


def test_unknown_bare_weights(data, tmp_path, mini):
    with pytest.raises(CheckpointError, match=r"fit none of .* known models\. The nearest is"):
        load_pretrained(None, data / "vitrpb_64.pth")
    changed = torch_layout(mini)
    changed["norm.weight"] = mx.zeros((3,))
    path = write_foreign(tmp_path / "w.pth", changed)
    with pytest.raises(CheckpointError, match=r"norm\.weight: the model has \(512,\), the file"):
        NAT.from_pretrained(path)
    with pytest.raises(CheckpointError, match="fit none"):
        IsotropicNAT.from_pretrained(path)


def test_weights_into_a_model_that_is_there(data):
    config = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64, "num_classes": 10}
    model = IsotropicNAT(IsotropicConfig(**config, kernel_size=None))
    load_weights(model, data / "vitrpb_64.pth")
    expected = np.load(data.parent / "models" / "tiny" / "vitrpb_64.npz")
    assert np.array_equal(np.array(model.head.weight), expected["param::head.weight"])


def test_registered_name(monkeypatch, mini_file):
    from natten_zoo.pretrained import load, source

    found = source.Source(mini_file, get_record("nat_mini"))
    monkeypatch.setattr(load, "locate", lambda name, options: found)
    with pytest.raises(ValueError, match=r"head\.bias: the model has \(1000,\), the file \(7,\)"):
        NAT.from_pretrained("nat_mini")
    model = NAT.from_pretrained("nat_mini", num_classes=7)
    assert model.config.num_classes == 7 and model.record.top1 is None
    with pytest.raises(
        ValueError, match=r"must be a DiNAT but is a NAT; call NAT\.from_pretrained"
    ):
        DiNAT.from_pretrained("nat_mini", num_classes=7)


def test_new_classifier(data, caplog):
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        model = NAT.from_pretrained(data / "nat-tiny-random", num_classes=3)
    assert model.head.weight.shape == (3, 64) and model(mx.zeros((1, 32, 32, 3))).shape == (1, 3)
    assert model.record.num_classes == 3 and not model.record.classes
    assert "classifier of 10 classes replaced by a fresh one of 3" in caplog.text
    same_size = NAT.from_pretrained(data / "nat-tiny-random", num_classes=10)
    assert same(same_size, NAT.from_pretrained(data / "nat-tiny-random"))
    headless = NAT.from_pretrained(data / "nat-tiny-random", num_classes=0)
    assert headless(mx.zeros((1, 32, 32, 3))).shape == (1, 64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", mx.float16])
def test_dtype(data, dtype):
    model = NAT.from_pretrained(data / "nat-tiny-random", dtype=dtype)
    wanted = getattr(mx, dtype) if isinstance(dtype, str) else dtype
    assert {value.dtype for value in parameters(model).values()} == {wanted}


@pytest.mark.parametrize("dtype", ["int8", "float64", "nonsense", mx.int32])
def test_impossible_dtype(data, dtype):
    with pytest.raises(ValueError, match="'dtype' must be one of float32, float16, bfloat16"):
        NAT.from_pretrained(data / "nat-tiny-random", dtype=dtype)


@pytest.fixture
def damaged(data, tmp_path):
    """A Hugging Face folder with a weight missing, one too many and one of another shape."""
    folder = tmp_path / "damaged"
    shutil.copytree(data / "dinat-ls-tiny-random", folder, copy_function=shutil.copyfile)
    weights = mx.load(str(folder / "model.safetensors"))
    del weights["classifier.bias"]
    weights["dinat.extra"] = mx.zeros((2,))
    weights["dinat.layernorm.weight"] = mx.zeros((5,))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def test_strict(damaged):
    with pytest.raises(ValueError) as caught:
        DiNAT.from_pretrained(damaged)
    message = str(caught.value)
    assert str(damaged) in message and "3 of them" in message
    assert "head.bias: missing, the model has (10,)" in message
    assert "extra: unexpected, the file has (2,)" in message
    assert "norm.weight: the model has (64,), the file (5,)" in message


def test_not_strict_says_what_it_skips(damaged, caplog):
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        model = DiNAT.from_pretrained(damaged, strict=False)
    assert "3 weights do not fit" in caplog.text and "head.bias: missing" in caplog.text
    assert mx.array_equal(model.norm.weight, mx.ones((64,)))
    expected = mx.load(str(damaged / "model.safetensors"))["classifier.weight"]
    assert mx.array_equal(model.head.weight, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "maskformer"}, "'maskformer' model"),
        ({"embed_dim": -8}, "config.json is wrong"),
        ({"num_heads": [0, 0, 0, 0]}, "config.json is wrong"),
        ({"embed_dim": None}, "config.json is wrong"),
        ({"depths": "many"}, "config.json is wrong"),
        ({"id2label": {"a": "b"}}, "config.json is wrong"),
        ({"architecture": "Resnet", "config": {}}, "config.json is wrong: .*Resnet"),
        ({"architecture": "NAT"}, "config.json is wrong"),
        ({"architecture": "NAT", "config": {"color": 1}}, "config.json is wrong: .*color"),
        ({"architecture": "NAT", "config": []}, "config.json is wrong"),
        ({"architecture": ["NAT"], "config": {}}, "config.json is wrong"),
    ],
)
def test_wrong_configuration(data, tmp_path, change, reason):
    folder = tmp_path / "model"
    shutil.copytree(data / "dinat-ls-tiny-random", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=reason):
        load_pretrained(None, folder)


@pytest.mark.parametrize("num_classes", [-1, 2.5, True])
def test_impossible_num_classes(data, num_classes):
    with pytest.raises(ValueError, match="'num_classes' must be an int >= 0"):
        NAT.from_pretrained(data / "nat-tiny-random", num_classes=num_classes)


def test_create_model_takes_weights_from_a_path(mini, mini_file):
    model = create_model("dinat_mini", pretrained=mini_file, num_classes=7)
    assert same(model, mini) and isinstance(model, DiNAT) and not model.training
    other = create_model("nat_mini", pretrained=mini_file, num_classes=2)
    assert mx.array_equal(other.norm.weight, mini.norm.weight)
    assert other.head.weight.shape == (2, 512)

"""Formats, folders, and which part of a training checkpoint is the weights."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import read_checkpoint


def linear(data, index):
    arrays = np.load(data / "linear.npz")
    return {key: arrays[f"{index}.{key}"] for key in ("weight", "bias")}


def same(weights, expected):
    return weights.keys() == expected.keys() and all(
        np.array_equal(np.array(weights[key]), expected[key]) for key in expected
    )


@pytest.mark.parametrize(
    ("file", "ema", "part", "index"),
    [
        ("timm.pth", True, "state_dict_ema", 1),
        ("timm.pth", False, "state_dict", 0),
        ("mmcv.pth", True, "state_dict", 2),
        ("detectron2.pth", True, "model", 3),
    ],
)
def test_training_checkpoints(data, file, ema, part, index):
    checkpoint = read_checkpoint(data / file, ema=ema)
    assert checkpoint.part == part
    assert checkpoint.format == "torch"
    assert same(checkpoint.weights, linear(data, index))
    assert part not in checkpoint.metadata


def test_timm_metadata(data):
    metadata = read_checkpoint(data / "timm.pth").metadata
    assert metadata["arch"] == "nat_mini" and metadata["epoch"] == 12
    assert metadata["metric"] == 81.8


def test_upstream_file(data):
    checkpoint = read_checkpoint(data / "vitrpb_64.pth")
    assert checkpoint.part == "" and checkpoint.config is None and checkpoint.ignored == ()
    assert checkpoint.weights["layers.0.attn.relative_position_index"].dtype == mx.int64
    assert len(checkpoint.weights) == 50


def test_hugging_face_folders(data):
    nat = read_checkpoint(data / "nat-tiny-random")
    assert nat.format == "torch" and nat.config["model_type"] == "nat"
    assert nat.preprocessor["image_processor_type"] == "ViTImageProcessor"
    dinat = read_checkpoint(data / "dinat-ls-tiny-random")
    assert dinat.format == "torch" and dinat.config["model_type"] == "dinat"
    assert "dinat.embeddings.norm.weight" in dinat.weights


def test_mlx_wrote_it(tmp_path):
    arrays = {"a": mx.arange(3), "b": mx.zeros((2, 0))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays, metadata={"format": "mlx"})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "mlx" and checkpoint.weights["b"].shape == (2, 0)
    assert checkpoint.weights["a"].tolist() == [0, 1, 2]


def shards(folder, weight_map, **files):
    for name, arrays in files.items():
        mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(tmp_path):
    where = {"a": "one.safetensors", "b": "two.safetensors"}
    shards(tmp_path, where, one={"a": mx.arange(2)}, two={"b": mx.arange(3)})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "mlx"
    assert [checkpoint.weights[k].tolist() for k in "ab"] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "'three.safetensors' is missing"),
        ({"b": "one.safetensors"}, "weight 'b' is not in 'one.safetensors'"),
        ({"a": "../one.safetensors"}, "no plain file name"),
        ({"a": "/etc/passwd"}, "no plain file name"),
        ({"a": "model.safetensors.index.json"}, "no plain file name"),
        ({"a": ["one.safetensors"]}, "no plain file name|missing"),
        ([], "no weight_map"),
    ],
)
def test_lying_index(tmp_path, where, reason):
    shards(tmp_path, where, one={"a": mx.arange(2)})
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path)


def test_one_weight_file_of_any_name(data, tmp_path):
    shutil.copy(data / "detectron2.pth", tmp_path / "anything.pth")
    assert same(read_checkpoint(tmp_path).weights, linear(data, 3))
    shutil.copy(data / "mmcv.pth", tmp_path / "another.pth")
    with pytest.raises(CheckpointError, match="several weight files"):
        read_checkpoint(tmp_path)


def test_format_is_told_by_content_not_by_name(data, tmp_path):
    shutil.copy(data / "dinat-ls-tiny-random" / "model.safetensors", tmp_path / "weights.pth")
    shutil.copy(data / "vitrpb_64.pth", tmp_path / "weights.dat")
    assert "classifier.bias" in read_checkpoint(tmp_path / "weights.pth").weights
    assert "head.bias" in read_checkpoint(tmp_path / "weights.dat").weights


def test_wrappers_are_taken_off(torch_zip):
    one = torch_zip.tensor()
    path = torch_zip.write(torch_zip.dictionary(**{"module._orig_mod.a": one, "module.b": one}))
    assert set(read_checkpoint(path).weights) == {"_orig_mod.a", "b"}
    path = torch_zip.write(torch_zip.dictionary(**{"module.a": one, "b": one}))
    assert set(read_checkpoint(path).weights) == {"module.a", "b"}


@pytest.mark.parametrize("config", ["[]", "{", "nonsense", "[" * 100_000, '"\\ud800'])
def test_bad_config(data, tmp_path, config):
    folder = tmp_path / "model"
    shutil.copytree(data / "dinat-ls-tiny-random", folder, copy_function=shutil.copyfile)
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json: no (valid )?JSON"):
        read_checkpoint(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_checkpoint(tmp_path / "nat.pth")
    with pytest.raises(CheckpointError, match="no weights"):
        read_checkpoint(tmp_path)

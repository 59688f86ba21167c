"""OneFormer and Mask2Former from files in their own formats: the same model whatever the format."""

import json
import pickle
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.models import Mask2Former, OneFormer, create_model, load_pretrained
from natten_zoo.pretrained import CheckpointError, read_checkpoint
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.key_map import key_map
from natten_zoo.pretrained.load import load_weights
from natten_zoo.pretrained.readers import Checkpoint

from ..pretrained.conftest import TorchZip
from ..universal import CLASSES, empty_arrays, given, hub_shapes, upstream_names

BOTH = pytest.mark.parametrize("name", CLASSES)
PREPROCESSOR = {
    "image_processor_type": "OneFormerImageProcessor",
    "size": {"shortest_edge": 640, "longest_edge": 2560},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_resize": True,
    "resample": 2,
    "num_text": 234,
    "class_info_file": "ade20k_panoptic.json",
}


def write_torch(folder, weights, **beside):
    """A file as torch writes it: `{"model": weights, ...}`, or the weights alone."""
    writer = TorchZip(folder)
    tensors = {}
    storages = {}
    for index, (key, value) in enumerate(weights.items()):
        stride = tuple(step // value.itemsize for step in np.zeros(value.shape, "<f4").strides)
        where = {"key": str(index), "count": value.size, "shape": value.shape, "stride": stride}
        tensors[key] = writer.tensor(**where)
        storages[str(index)] = np.ascontiguousarray(value, "<f4")
    program = writer.dictionary(**tensors)
    if beside:
        entries = {key: writer.literal(value) for key, value in beside.items()}
        program = writer.dictionary(model=program, **entries)
    return writer.write(program, storages)


def hub_folder(case, folder, weights, change=None):
    folder.mkdir()
    config = {"architectures": ["X"], **case.hub_config, **(change or {})}
    config["model_type"] = case.name
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if weights == "safetensors":
        arrays = {key: mx.array(value) for key, value in case.weights.items()}
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    else:
        write_torch(folder, case.weights).rename(folder / "pytorch_model.bin")
    return folder


def check(model, case):
    assert type(model) is case.cls and not model.training
    found, expected = (each(case.image, "semantic") for each in (model, case.model))
    assert mx.array_equal(found.masks, expected.masks)
    assert mx.array_equal(found.classes, expected.classes)


@BOTH
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_folders_of_hugging_face(name, weights, tmp_path):
    case = given(name)
    model = load_pretrained(None, hub_folder(case, tmp_path / "hub", weights))
    check(model, case)
    record = model.record
    assert (record.input_size, record.longest, record.crop_mode) == (640, None, "whole")
    assert (record.interpolation, record.num_classes) == ("bilinear", 6)
    assert record.classes == tuple(case.hub_config["id2label"].values())


@BOTH
def test_files_of_upstream(name, tmp_path):
    """`{"model": ..., "trainer": ...}` in detectron2's names."""
    case = given(name)
    weights = upstream_names(name, case.weights)
    weights["criterion.empty_weight"] = np.ones(7, "<f4")
    if name == "oneformer":
        weights["text_encoder.ln_final.weight"] = weights["prompt_ctx.weight"] = np.ones(3, "<f4")
    path = write_torch(tmp_path, weights, iteration=160000, trainer={"x": 1})
    check(load_small(case, path), case)


@BOTH
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_upstream(name, protocol, tmp_path):
    """`.pkl`, a bare pickle of NumPy arrays, as detectron2's converters write it."""
    case = given(name)
    weights = upstream_names(name, case.weights)
    content = {"model": weights, "__author__": "third_party", "matching_heuristics": True}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    check(load_small(case, path), case)


def load_small(case, path):
    model = case.cls(case.model.config)
    load_weights(model, path)
    return model.eval()


@BOTH
def test_saved_and_loaded(name, tmp_path):
    case = given(name)
    folder = case.model.save_pretrained(tmp_path / "saved")
    check(case.cls.from_pretrained(folder), case)


def test_the_wrong_class_is_refused(tmp_path):
    folder = hub_folder(given("oneformer"), tmp_path / "hub", "safetensors")
    with pytest.raises(ValueError, match="must be a Mask2Former but is a OneFormer"):
        Mask2Former.from_pretrained(folder)
    check(OneFormer.from_pretrained(folder), given("oneformer"))


def test_a_file_that_hugging_face_cannot_run_is_refused_with_the_reason(tmp_path):
    case = given("mask2former")
    folder = hub_folder(case, tmp_path / "hub", "safetensors", {"enforce_input_projection": True})
    with pytest.raises(CheckpointError, match="is not saved, so the file lacks its weights"):
        load_pretrained(None, folder)


def test_an_unknown_weight_is_an_error(tmp_path):
    case = given("oneformer")
    weights = {**upstream_names("oneformer", case.weights), "extra.weight": np.ones(3, "<f4")}
    path = write_torch(tmp_path, weights, iteration=1)
    with pytest.raises(ValueError, match=r"extra.weight: unexpected, the file has \(3,\)"):
        load_small(case, path)


def test_other_classes(tmp_path):
    folder = hub_folder(given("oneformer"), tmp_path / "hub", "safetensors")
    model = load_pretrained(None, folder, num_classes=3)
    assert model(given("oneformer").image).classes.shape == (1, 10, 4)
    assert model.record.classes == ""


@pytest.mark.parametrize("stem, name", [
    ("250_16_dinat_l_oneformer_ade20k_160k", "oneformer_ade20k_dinat_large"),
    ("mask2former_dinat_large_coco_instance", "mask2former_dinat_large_coco_instance"),
    ("mask2former_dinat_large_cityscapes_semantic", "mask2former_dinat_large_cityscapes_semantic"),
])  # fmt: skip
def test_a_bare_file_is_known_by_its_name(stem, name):
    model = create_model(name)
    family = type(model).__name__.lower()
    empty = {
        key: mx.zeros(value.shape)
        for key, value in upstream_names(family, empty_arrays(hub_shapes(name))).items()
    }
    record = infer(Checkpoint(Path(f"{stem}.pth"), empty, "torch"), None)
    assert (record.name, record.num_classes) == (name, model.config.num_classes)


@BOTH
def test_a_conversion_tells_what_became_of_every_weight(name, tmp_path):
    case = given(name)
    read = read_checkpoint(hub_folder(case, tmp_path / "hub", "bin"))
    mapping = key_map(case.model, read)
    assert mapping.keys() == dict(tree_flatten(case.model.parameters())).keys()
    first = mapping["decoder.layers.0.cross_attn.query_proj.weight"]
    assert first == mapping["decoder.layers.0.cross_attn.value_proj.weight"] and len(first) == 1
    assert len(mapping["backbone.levels.0.blocks.0.attn.qkv.weight"]) == 3
    used = {theirs for names in mapping.values() for theirs in names}
    assert set(read.weights) - used == {k for k in read.weights if k.startswith("criterion.")}

"""Saving: a round trip bit for bit, all or nothing; and what is uploaded."""

import json
import logging
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import mlx.core as mx
import pytest
import yaml
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record
from natten_zoo.data import Preprocess
from natten_zoo.models import NAT, DiNAT, NATConfig
from natten_zoo.pretrained import CheckpointError, load_pretrained, read_checkpoint
from natten_zoo.pretrained import folder as folder_module
from natten_zoo.pretrained import save as save_module
from natten_zoo.pretrained.card import model_card
from natten_zoo.pretrained.folder import write_folder

CONFIG = NATConfig(16, depths=(1, 2), num_heads=(1, 2), kernel_size=3, num_classes=5)


def bits(model):
    view = {4: mx.uint32, 2: mx.uint16}
    return {
        name: (value.dtype, value.view(view[value.itemsize]).tolist())
        for name, value in tree_flatten(model.parameters())
    }


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_round_trip_bit_for_bit(tmp_path, dtype):
    model = NAT(CONFIG)
    model.norm.weight[:4] = mx.array([float("nan"), float("inf"), -0.0, 1e-42])
    model.set_dtype(dtype)
    folder = model.save_pretrained(tmp_path / "model")
    assert folder == tmp_path / "model"
    loaded = NAT.from_pretrained(folder)
    assert bits(loaded) == bits(model) and loaded.config == model.config
    assert loaded.record is None and not loaded.training
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert read_checkpoint(folder).format == "mlx"
    again = loaded.save_pretrained(tmp_path / "again")
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()


@pytest.mark.parametrize(
    "name", ["nat_pico_fashion", "nat_mini", "dinat_mini", "dinat_s_tiny", "vitrpb_small"]
)
def test_round_trip_of_a_registered_model(tmp_path, name):
    model = create_model(name)
    loaded = load_pretrained(None, model.save_pretrained(tmp_path / "model"))
    assert type(loaded) is type(model) and loaded.config == model.config
    mine, other = dict(tree_flatten(model.parameters())), dict(tree_flatten(loaded.parameters()))
    assert mine.keys() == other.keys()
    assert all(mx.array_equal(mine[key], other[key]) for key in mine)
    unsaved = {"file": None, "sha256": None, "model": loaded.record.model}
    assert loaded.record == replace(model.record, **unsaved)
    preprocessor = read_checkpoint(tmp_path / "model").preprocessor
    assert Preprocess.from_config(preprocessor) == Preprocess.from_record(get_record(name))


def test_class_names_are_kept(tmp_path):
    model = NAT(CONFIG)
    names = ("ant", "bee", "cat", "dog", "elk")
    model.record = replace(get_record("nat_mini"), num_classes=5, classes=names)
    assert NAT.from_pretrained(model.save_pretrained(tmp_path / "m")).record.classes == names


def test_a_new_classifier_voids_what_the_record_claims(tmp_path):
    model = create_model("nat_pico_fashion", pretrained=True)
    assert model.record.top1
    model.reset_classifier(3)
    record = NAT.from_pretrained(model.save_pretrained(tmp_path / "m")).record
    assert record.num_classes == 3 and record.top1 is None and not record.classes


@pytest.mark.parametrize("place", [".", "..", "../here"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="is the current folder or around it; name a new one"):
        NAT(CONFIG).save_pretrained(place)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("name", ["nat_mini", "upernet_nat_mini"])
def test_a_new_classifier_of_the_same_size_has_no_names_or_accuracy_either(name):
    model = create_model(name)
    model.record = old = get_record(name)
    assert old.classes and (old.top1 or old.miou)
    model.reset_classifier(old.num_classes)
    assert not model.record.classes and model.record.top1 is model.record.miou is None
    assert (model.record.num_classes, model.record.params) == (old.num_classes, old.params)


def test_reading_lazily(tmp_path):
    model = NAT(CONFIG)
    lazy = NAT.from_pretrained(model.save_pretrained(tmp_path / "m"), lazy=True)
    # The file that was opened stays what it was, even when another takes its place.
    NAT(CONFIG).save_pretrained(tmp_path / "m", overwrite=True)
    assert bits(lazy) == bits(model)


def test_an_existing_target_is_refused(tmp_path):
    model, target = NAT(CONFIG), tmp_path / "m"
    target.mkdir()
    model.save_pretrained(target)  # empty
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        NAT(CONFIG).save_pretrained(target)
    assert (target / "model.safetensors").read_bytes() == before
    other = NAT(CONFIG)
    other.save_pretrained(target, overwrite=True)
    assert bits(NAT.from_pretrained(target)) == bits(other)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"other files too: thesis\.tex"):
        model.save_pretrained(target, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is no folder"):
        model.save_pretrained(tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, overwrite):
    model, target = NAT(CONFIG), tmp_path / "m"
    if overwrite:
        model.save_pretrained(target)

    def full_disk(path, weights, metadata):
        Path(path).write_bytes(b"half of it")
        raise RuntimeError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(save_module.mx, "save_safetensors", full_disk)
        with pytest.raises(RuntimeError, match="No space left"):
            NAT(CONFIG).save_pretrained(target, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == (["m"] if overwrite else [])
    if overwrite:
        assert bits(NAT.from_pretrained(target)) == bits(model)


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    write = mx.save_safetensors

    def silently_wrong(path, weights, metadata):
        write(path, {**weights, "head.bias": weights["head.bias"] + 1}, metadata=metadata)

    monkeypatch.setattr(save_module.mx, "save_safetensors", silently_wrong)
    with pytest.raises(CheckpointError, match=r"'head\.bias' was not written as it is"):
        NAT(CONFIG).save_pretrained(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_files_reach_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    events = []
    sync, rename = folder_module._sync, Path.rename
    monkeypatch.setattr(folder_module, "_sync", lambda p: (events.append(p.name), sync(p)))
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (events.append(f"-> {to.name}"), rename(self, to))
    )
    write_folder(tmp_path / "m", lambda folder: (folder / "a").write_text("x") and None)
    assert sorted(events[:2]) == ["SHA256SUMS", "a"]
    assert events[2:] == [".m.partial", "-> m", tmp_path.name]


# The Hub.


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Stands for the Hub's API and keeps what is sent to it."""
    sent = SimpleNamespace(files={}, arguments={}, repo={}, token=None)

    class Api:
        def __init__(self, token=None, **_):
            sent.token = token

        def create_repo(self, repo_id, **keywords):
            sent.repo = {"repo_id": repo_id, **keywords}
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path, **keywords):
            sent.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            sent.arguments = keywords
            return SimpleNamespace(commit_url="https://huggingface.co/me/pico/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return sent


def test_push_to_hub(api, tmp_path):
    model = create_model("nat_mini")
    url = model.push_to_hub("me/mini", private=True, token="hf_x", create_pr=True)
    assert url == "https://huggingface.co/me/pico/commit/1"
    assert api.token == "hf_x"
    assert api.repo == {"repo_id": "me/mini", "private": True, "exist_ok": True}
    assert api.arguments["repo_id"] == "me/mini" and api.arguments["create_pr"] is True
    assert api.arguments["commit_message"] == "Upload NAT with natten_zoo"
    folder = tmp_path / "pushed"
    folder.mkdir()
    for name, content in api.files.items():
        (folder / name).write_bytes(content)
    loaded = NAT.from_pretrained(folder)
    assert mx.array_equal(loaded.head.weight, model.head.weight)
    assert "README.md" in api.files
    model.save_pretrained(folder, overwrite=True)  # a downloaded folder, card and all


def front_matter(card):
    return yaml.safe_load(str(card).split("---")[1])


def test_model_card(api):
    model = create_model("dinat_large_384_11x11")
    assert "model-index" not in front_matter(model_card(model, "me/random"))
    model.record = get_record("dinat_large_384_11x11")  # as with its weights
    card = model_card(model, "me/dinat-large-mlx")
    header = front_matter(card)
    assert header["license"] == "mit" and header["library_name"] == "mlx"
    assert header["base_model"] == "shi-labs/dinat-large-11x11-in22k-in1k-384"
    assert header["pipeline_tag"] == "image-classification" and "mlx" in header["tags"]
    result = header["model-index"][0]["results"][0]["metrics"][0]
    assert result["value"] == model.record.top1 and result["type"] == "accuracy"
    text = str(card)
    for part in (
        "# dinat-large-mlx",
        "Top-1 accuracy | 87.5 % on imagenet-1k",
        "github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        "201,144,250",
        'DiNAT.from_pretrained("me/dinat-large-mlx")',
        "Resize the short side to 384",
    ):
        assert part in text, part


def test_model_card_claims_nothing_it_does_not_know(api):
    model = create_model("nat_mini")
    model.record = get_record("nat_mini")
    model.reset_classifier(3)
    header, text = front_matter(model_card(model, "me/x")), str(model_card(model, "me/x"))
    assert "model-index" not in header and "datasets" not in header
    assert "accuracy" not in text and "81.8" not in text and "| Classes | 3 |" in text
    bare = str(model_card(DiNAT(CONFIG), "me/x"))
    assert "license" not in bare and "Preprocessing" not in bare and "A DiNAT" in bare


def test_the_cards_snippet_runs(tmp_path, monkeypatch):
    from PIL import Image

    model = create_model("nat_pico_fashion")
    model.save_pretrained(tmp_path / "me" / "pico")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    code = str(model_card(model, "me/pico")).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.NOTSET)
    exec(compile(code, "snippet", "exec"), {})


def test_config_is_plain(tmp_path):
    config = json.loads(
        (create_model("nat_mini").save_pretrained(tmp_path / "m") / "config.json").read_text()
    )
    assert config["architecture"] == "NAT" and config["config"]["embed_dim"] == 64
    assert config["record"]["license"] == "MIT" and config["record"]["classes"] == "imagenet-1k"
    assert "file" not in config["record"] and config["natten_zoo_version"]


def test_a_flipped_bit_is_found(tmp_path):
    folder = NAT(CONFIG).save_pretrained(tmp_path / "m")
    weights = folder / "model.safetensors"
    flip(weights, -500)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is damaged: its digest"):
        NAT.from_pretrained(folder)
    flip(weights, -500)
    NAT.from_pretrained(folder)
    (folder / "SHA256SUMS").unlink()  # folders of earlier versions have none
    flip(weights, -500)
    NAT.from_pretrained(folder)


def test_a_configuration_that_was_edited_is_taken_and_said(tmp_path, caplog):
    folder = NAT(CONFIG).save_pretrained(tmp_path / "m")
    NAT.from_pretrained(folder)
    assert not caplog.text
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    NAT.from_pretrained(folder)
    assert "config.json was changed after it had been written" in caplog.text


def test_the_digests_are_those_of_sha256sum(tmp_path):
    folder = NAT(CONFIG).save_pretrained(tmp_path / "m")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place, 2)
        byte = file.read(1)[0]
        file.seek(place, 2)
        file.write(bytes([byte ^ 64]))

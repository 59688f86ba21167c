"""`natten-zoo convert`, as it is typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest

from natten_zoo import create_model
from natten_zoo.cli import main
from natten_zoo.files import sha256_of
from natten_zoo.models import NAT
from natten_zoo.pretrained import load_pretrained, read_checkpoint

ROOT = Path(__file__).parents[2]


def test_hugging_face_folder(data, tmp_path, capsys):
    assert main(["convert", str(data / "nat-tiny-random"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "NAT nat-tiny-random, 95,109 parameters" in printed
    assert (
        "levels.*.blocks.*.attn.qkv.weight     x 6  from nat.encoder.levels.*.layers.*" in printed
    )
    assert "attention.self.{key,query,value}.weight" in printed
    assert "written and read back" in printed
    model, converted = (
        NAT.from_pretrained(data / "nat-tiny-random"),
        NAT.from_pretrained(tmp_path / "out"),
    )
    x = mx.random.normal((1, 64, 64, 3))
    assert mx.array_equal(model(x), converted(x))
    assert converted.record.classes[0] == "LABEL_0" and converted.record.crop_mode == "squash"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    provenance = json.loads((tmp_path / "out" / "config.json").read_text())["converted_from"]
    digest = sha256_of(data / "nat-tiny-random" / "pytorch_model.bin")
    assert provenance == {"source": "nat-tiny-random", "sha256": digest}


def test_options(data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(data / "nat-tiny-random"), str(out)]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    assert read_checkpoint(out).weights["head.weight"].dtype == mx.bfloat16
    assert main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert read_checkpoint(out).weights["head.weight"].dtype == mx.bfloat16
    assert main(["convert", str(out), str(tmp_path / "half")]) == 0
    assert read_checkpoint(tmp_path / "half").weights["head.weight"].dtype == mx.bfloat16
    assert main(["convert", "nat_pico_fashion", str(tmp_path / "pico")]) == 0
    # In float16 to be small; its config.json says float32, and that is what is computed.
    assert read_checkpoint(tmp_path / "pico").weights["head.weight"].dtype == mx.float32
    assert main([*arguments, "--overwrite"]) == 0
    assert read_checkpoint(out).weights["head.weight"].dtype == mx.float32
    assert main(["convert", str(out), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_names_in_metadata_and_unused_weights_are_told(data, tmp_path, capsys, monkeypatch):
    from natten_zoo.pretrained import describe

    model = create_model(
        "vitrpb_small", img_size=64, embed_dim=32, depth=3, num_heads=2, num_classes=10
    )
    description = describe.Description("IsotropicNAT", model.config.to_dict(), None)
    monkeypatch.setattr(describe, "describe", lambda *_: description)
    assert main(["convert", str(data / "vitrpb_64.pth"), str(tmp_path / "out")]) == 0
    assert "not used: layers.*.attn.relative_position_index" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("legacy.pth", "format before 1.6"),
        ("detectron2.pth", "fit none of"),
        ("gone.pth", "no such file"),
        ("nat_mimi", "nearest names are nat_mini"),
    ],
)
def test_failures_leave_nothing(data, tmp_path, capsys, source, message):
    path = str(data / source) if source.endswith(".pth") else source
    assert main(["convert", path, str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_private_needs_a_repository(data, tmp_path, capsys):
    assert main(["convert", str(data / "nat-tiny-random"), str(tmp_path / "o"), "--private"]) == 2
    assert "--upload-repo" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_upload(data, tmp_path, capsys, monkeypatch):
    from natten_zoo.pretrained import save

    calls = []
    monkeypatch.setattr(
        save,
        "push_to_hub",
        lambda model, repo, private: calls.append((repo, private)) or "https://x",
    )
    arguments = ["convert", str(data / "nat-tiny-random"), str(tmp_path / "o")]
    assert main([*arguments, "--upload-repo", "me/nat", "--private"]) == 0
    assert calls == [("me/nat", True)] and "https://x" in capsys.readouterr().out


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint that takes a moment to write."""
    return create_model("dinat_mini").save_pretrained(tmp_path_factory.mktemp("large") / "in")


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_conversion_leaves_no_broken_folder(large, tmp_path, overwrite):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    command = [sys.executable, "-m", "natten_zoo", "convert", str(large), str(out), "--overwrite"]
    before = None
    if overwrite:
        NAT(create_model("nat_pico_fashion").config).save_pretrained(out)
        before = (out / "model.safetensors").read_bytes()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (partial / "model.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was finished before it could be killed"
    assert partial.exists()
    if before is None:
        assert not out.exists()
    else:
        assert (out / "model.safetensors").read_bytes() == before
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_pretrained(None, out).record.name == "dinat_mini"

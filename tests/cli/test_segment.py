"""`natten-zoo segment`: the three files it writes, and what it refuses."""

import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.models import NATConfig, UPerNet, UPerNetConfig
from natten_zoo.pretrained import Record

from ..universal import given


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    mx.random.seed(1)
    body = NATConfig(8, (1, 1), (1, 2), kernel_size=3, drop_path_rate=0.0)
    model = UPerNet(UPerNetConfig(body, channels=8, aux_channels=8, num_classes=3)).eval()
    model.decode_head.conv_seg.bias = mx.array([0.0, 0.001, 0.002])
    model.record = Record(
        name="tiny",
        architecture="UPerNet",
        model={},
        input_size=64,
        num_classes=3,
        classes=("sky", "sea", "sand"),
    )
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 70)).save(path)
    return path


def run(capsys, *arguments):
    status = main(["segment", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_segment_writes_overlay_mask_and_json(capsys, checkpoint, photo, tmp_path):
    overlay = tmp_path / "new" / "out.png"
    status, out, err = run(capsys, photo, "-m", checkpoint, "-o", overlay)
    assert (status, err) == (0, "")
    facts = json.loads((tmp_path / "new/out.json").read_text())
    mask = np.asarray(Image.open(tmp_path / "new/out_mask.png"))
    assert mask.shape == (facts["height"], facts["width"]) == (70, 90)
    for entry in facts["classes"]:
        assert entry["class"] == ("sky", "sea", "sand")[entry["index"]]
        assert entry["pixels"] == (mask == entry["index"]).sum()
        assert entry["share"] == pytest.approx(entry["pixels"] / 6300, abs=1e-6)
        assert f"{entry['share']:8.1%}  {entry['class']}" in out
    assert sum(entry["pixels"] for entry in facts["classes"]) == 6300
    image = Image.open(overlay)
    assert image.height == 70 and image.width > 90
    assert sorted(p.name for p in overlay.parent.iterdir()) == [
        "out.json", "out.png", "out_mask.png",
    ]  # fmt: skip


def test_options_reach_the_model(capsys, checkpoint, photo, tmp_path):
    arguments = [photo, "-m", checkpoint, "-o", tmp_path / "o.png", "--json"]
    status, out, _ = run(capsys, *arguments, "--scales", "0.5,1", "--flip", "--sliding-window")
    assert status == 0 and json.loads(out)["width"] == 90
    with pytest.raises(SystemExit):
        run(capsys, *arguments, "--scales", "0.5,0")
    assert "must be positive numbers but got 0.5,0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(capsys, *arguments, "--opacity", "2")


def test_what_is_refused(capsys, checkpoint, tiny, photo, tmp_path):
    status, _, err = run(capsys, tmp_path / "none.jpg", "-m", checkpoint)
    assert status == 2 and "none.jpg: no such file" in err
    status, _, err = run(capsys, photo, "-m", tiny, "-o", tmp_path / "o.png")
    assert status == 2 and "must be a UPerNet, a OneFormer or a Mask2Former but is a NAT" in err
    assert not (tmp_path / "o.png").exists()
    assert main(["classify", str(photo), "-m", str(checkpoint)]) == 2
    assert "must classify images but is made for image-segmentation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.png", "out_mask.png", "out.json"])
def test_the_input_is_not_overwritten(capsys, checkpoint, tmp_path, name):
    Image.new("RGB", (40, 40)).save(tmp_path / name, "PNG")
    before = (tmp_path / name).read_bytes()
    status, _, err = run(capsys, tmp_path / name, "-m", checkpoint, "-o", tmp_path / "out.png")
    assert status == 2 and f"{name} would overwrite the input" in err
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture(scope="module")
def universal_checkpoint(tmp_path_factory):
    model = given("oneformer").model
    record = Record(
        name="tiny",
        architecture="OneFormer",
        model={},
        input_size=64,
        crop_mode="whole",
        crop_pct=1.0,
        num_classes=6,
        classes=("sky", "sea", "sand", "dune", "boat", "bird"),
        tasks=("panoptic", "instance", "semantic"),
    )
    copy = type(model)(model.config)
    copy.update(model.parameters())
    copy.record = record
    return copy.save_pretrained(tmp_path_factory.mktemp("models") / "universal")


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("rules", ["original", "huggingface"])
def test_tasks_of_a_oneformer(capsys, universal_checkpoint, photo, tmp_path, task, rules):
    arguments = "--task", task, "--keep", 0.2, "--rules", rules, "-o", tmp_path / "o.png"
    status, out, err = run(capsys, photo, "-m", universal_checkpoint, *arguments)
    assert (status, err) == (0, "") and "written: " in out
    facts = json.loads((tmp_path / "o.json").read_text())
    mask = np.asarray(Image.open(tmp_path / "o_mask.png")).astype(int)
    assert Image.open(tmp_path / "o.png").height == 70 == facts["height"]
    if task == "semantic":
        assert sum(entry["pixels"] for entry in facts["classes"]) == mask.size == 6300
        return
    numbers = mask @ [1, 256, 65536]
    for entry in facts["segments"]:
        assert entry["class"] in out and entry["score"] >= 0.1
        if task == "panoptic" and rules == "original":  # else pieces of stuff are listed again
            assert entry["pixels"] == (numbers == entry["id"]).sum()
    if task == "panoptic":
        assert facts["panoptic"]["file_name"] == "o_mask.png"
        assert len(facts["panoptic"]["segments_info"]) == len(facts["segments"])
    else:
        for annotation in facts["annotations"]:
            assert annotation["segmentation"]["size"] == [70, 90]


def test_several_images(capsys, universal_checkpoint, photo, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "c.jpg").write_bytes(b"no image")
    arguments = folder, "-m", universal_checkpoint, "-o", tmp_path / "out", "--json", "--page"
    status, out, err = run(capsys, *arguments, "--batch-size", 2)
    assert status == 1 and "1 of 3 images could not be read" in err
    facts = [json.loads(line) for line in out.splitlines()]
    assert [fact["task"] for fact in facts] == ["panoptic", "panoptic"]
    assert facts[0]["segments"] == facts[1]["segments"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{s}{e}" for s in "ab" for e in (".html", ".json", ".png", "_mask.png")]
    status, _, err = run(
        capsys, folder, folder, "-m", universal_checkpoint, "-o", tmp_path / "x.png"
    )
    assert status == 2 and "--out must be a folder for 3 images" in err
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.png").write_bytes(b"")
    status, _, err = run(capsys, folder, tmp_path / "more", "-m", universal_checkpoint)
    assert status == 2 and "a is the name of several images" in err


def test_options_of_the_other_models_are_refused(
    capsys, checkpoint, universal_checkpoint, photo, tmp_path
):
    out = "-o", tmp_path / "o.png"
    status, _, err = run(capsys, photo, "-m", checkpoint, "--task", "panoptic", *out)
    assert status == 2 and "--task must be semantic with a UPerNet but got panoptic" in err
    status, _, err = run(capsys, photo, "-m", universal_checkpoint, "--flip", *out)
    assert status == 2 and "--scales, --flip and --sliding-window are for a UPerNet" in err
    assert not (tmp_path / "o.png").exists()
    with pytest.raises(SystemExit):
        run(capsys, photo, "-o", "o.jpg")
    assert "must end in .png but got o.jpg, or name a folder" in capsys.readouterr().err

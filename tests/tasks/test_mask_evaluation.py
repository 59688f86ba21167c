"""IoU of classes against its definition, pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.configs.record import Record
from natten_zoo.data.scenes import IGNORE, Scene
from natten_zoo.models import Mask2Former, Mask2FormerConfig, NATConfig, UPerNet, UPerNetConfig
from natten_zoo.tasks import mask_evaluation
from natten_zoo.tasks.mask_evaluation import MaskEvaluation, evaluate_masks
from natten_zoo.tasks.segmentation import Segmentation

BODY = NATConfig(8, depths=(1, 1), num_heads=(1, 2), kernel_size=3)
NAMES = ("sky", "sea", "sand", "boat")


@pytest.fixture
def upernet():
    return UPerNet(UPerNetConfig(BODY, channels=8, aux_channels=8, num_classes=4)).eval()


@pytest.fixture
def scenes(tmp_path):
    """Three scenes whose masks have all classes but the last, and pixels of none."""
    random = np.random.default_rng(0)
    found = []
    for number, size in enumerate([(20, 30), (31, 17), (16, 16)]):
        files = Scene(tmp_path / f"images/{number}.png", tmp_path / f"masks/{number}.png")
        for file in files:
            file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(files.image)
        mask = random.choice([0, 1, 2, IGNORE], size).astype(np.uint8)
        Image.fromarray(mask).save(files.mask)
        found.append(files)
    return found


def answer(monkeypatch, random):
    """Random answers instead of a model's, and what they were."""
    given = {}

    def segment(model, image, **options):
        pixels = np.asarray(Image.open(image))
        given[image] = random.integers(0, 4, pixels.shape[:2])
        return Segmentation(pixels, given[image], NAMES, ((0, 0, 0),) * 4)

    monkeypatch.setattr(mask_evaluation, "segment", segment)
    return given


def test_iou_by_its_definition(monkeypatch, upernet, scenes):
    given = answer(monkeypatch, np.random.default_rng(1))
    result = evaluate_masks(upernet, scenes, NAMES)
    truth = np.concatenate([np.asarray(Image.open(s.mask)).ravel() for s in scenes])
    found = np.concatenate([given[s.image].ravel() for s in scenes])
    truth, found = truth[truth != IGNORE], found[truth != IGNORE]
    for label, entry in enumerate(result.classes()):
        a, b = truth == label, found == label
        assert entry["iou"] == pytest.approx(100 * (a & b).sum() / (a | b).sum(), abs=1e-4)
        assert entry["pixels"] == a.sum()
    assert result.classes()[3]["accuracy"] is None and result.ious()[3] == 0
    assert result.miou == pytest.approx(result.ious().mean())
    assert result.pixel_accuracy == pytest.approx(100 * (truth == found).mean())
    assert result.images == 3 and not result.failures


def test_a_class_that_nobody_sees_does_not_count():
    counts = np.zeros((3, 3), int)
    counts[0, 0], counts[0, 1], counts[1, 1] = 3, 1, 4
    result = MaskEvaluation(NAMES[:3], counts)
    assert result.miou == pytest.approx((75 + 80) / 2) and np.isnan(result.ious()[2])
    assert MaskEvaluation(NAMES[:3], np.zeros((3, 3), int)).miou == 0


def test_classes_of_masks_as_other_outputs(monkeypatch, upernet, scenes):
    given = answer(monkeypatch, np.random.default_rng(2))
    result = evaluate_masks(upernet, scenes, NAMES, outputs=[3, 1, 0])
    truth = np.concatenate([np.asarray(Image.open(s.mask)).ravel() for s in scenes])
    found = np.concatenate([given[s.image].ravel() for s in scenes])
    assert result.counts[3, 2] == ((truth == 0) & (found == 2)).sum()
    assert result.counts[0].sum() == (truth == 2).sum() and result.counts[2].sum() == 0


def test_what_cannot_be_read_is_told_and_what_does_not_fit_refused(upernet, scenes):
    Image.new("L", (5, 5)).save(scenes[0].mask)
    scenes[1].image.write_bytes(b"cut")
    result = evaluate_masks(upernet, scenes, NAMES)
    assert result.images == 1 and len(result.failures) == 2
    assert "0.png must have the 30 x 20 pixels of its image but is 5 x 5" in result.failures[0]
    mask = np.asarray(Image.open(scenes[2].mask)).copy()
    mask[0, 0] = 4
    Image.fromarray(mask).save(scenes[2].mask)
    with pytest.raises(ValueError, match=r"2.png must have classes of the model's 4"):
        evaluate_masks(upernet, scenes[2:], NAMES)


def test_a_mask2former_is_asked_for_classes(scenes):
    body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
    model = Mask2Former(Mask2FormerConfig(body, 32, 32, num_queries=5, num_classes=4, depth=1))
    model.record = Record(
        "tiny", "Mask2Former", {}, input_size=32, crop_mode="whole", num_classes=4
    )
    result = evaluate_masks(model.eval(), scenes[2:], NAMES)
    assert result.counts.sum() == (np.asarray(Image.open(scenes[2].mask)) != IGNORE).sum()
    with pytest.raises(ValueError, match="'sliding_window' is for a UPerNet"):
        evaluate_masks(model, scenes, NAMES, sliding_window=True)


def test_the_command(upernet, scenes, tmp_path, capsys):
    upernet.save_pretrained(tmp_path / "model")
    command = ["evaluate", str(tmp_path), "--model", str(tmp_path / "model")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "3 images: mIoU" in text and "class 2" in text
    assert main([*command, "--json", "--limit", "2", "--sliding-window"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 2 and len(facts["classes"]) == 4
    assert main([*command, "--confusion", str(tmp_path / "c.png")]) == 2
    assert "--confusion is for classifiers" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--reduce-labels"]) == 2
    assert "are for models of masks" in capsys.readouterr().err

"""Training on volumes: random cubes, the loss, the data's own checks, and Dice that rises."""

import json
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.configs.record import Record
from natten_zoo.data.nuclei import FILES, FOLDER, is_nuclei, read_nuclei
from natten_zoo.data.warning import DataWarning
from natten_zoo.models import NAUNETR
from natten_zoo.training import Recipe, run, volumes
from natten_zoo.training.launch import make_trainer
from natten_zoo.training.volume_files import check_copies, volume_files
from natten_zoo.training.volumes import (
    Labeled,
    VolumeSource,
    dice_and_cross_entropy,
    dice_scores,
    open_volumes,
    split,
)

nibabel = pytest.importorskip("nibabel")

DATA = Path(__file__).parents[1] / "fixtures/volumes"
RECORD = Record("tiny", "NAUNETR", {}, input_size=16, crop_mode="volume")
OWN = {
    "data": str(DATA),
    "model_args": {"depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3},
    "image_size": 16,
    "batch_size": 8,
}


def recipe(**changes):
    return Recipe.load("na_unetr_nuclei", {**OWN, **changes})


def counting(*size):
    """A volume whose voxels tell where they are, with labels that go with them."""
    voxels = np.arange(np.prod(size), dtype=np.float32).reshape(*size, 1)
    return Labeled(voxels, (voxels[..., 0] % 7).astype(np.int32))


def test_nuclei(tmp_path):
    image, mask = read_nuclei(DATA)
    assert image.shape == (31, 61, 57, 1) and (image.min(), image.max()) == (104, 375)
    assert mask.shape == (31, 61, 57) and len(np.unique(mask)) == 52
    with zipfile.ZipFile(tmp_path / "stardist.whl", "w") as wheel:
        for name in FILES:
            wheel.write(DATA / name, f"{FOLDER}/{name}")
    assert is_nuclei(tmp_path / "stardist.whl") and not is_nuclei(tmp_path)
    assert np.array_equal(read_nuclei(tmp_path / "stardist.whl")[0], image)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("a", "b")
    with pytest.raises(ValueError, match=r"other.whl has no volume of stardist's"):
        read_nuclei(tmp_path / "other.whl")


@pytest.mark.parametrize("flip", [False, True])
def test_cubes_are_parts_of_volumes(flip):
    source = VolumeSource([counting(20, 18, 30), counting(9, 40, 17)], [], ("a",) * 7, 16, flip)
    assert source.size == 16 * (3 + 2)
    mx.random.seed(0)
    steps = set()
    for voxels, labels, _ in source.train_batches([np.arange(6)] * 10):
        assert voxels.shape == (6, 16, 16, 16, 1) and labels.shape == (6, 16, 16, 16)
        assert np.array_equal(labels, np.array(voxels)[..., 0].astype(int) % 7)
        for cube in np.array(voxels)[..., 0]:
            steps.add(float(np.sign(cube[0, 0, 1] - cube[0, 0, 0])))
            assert abs(cube[0, 0, 1] - cube[0, 0, 0]) == 1
    assert steps == ({-1.0, 1.0} if flip else {1.0})
    mx.random.seed(0)
    first = next(source.train_batches([np.arange(6)]))[0]
    mx.random.seed(0)
    assert mx.array_equal(next(source.train_batches([np.arange(6)]))[0], first)


def test_split():
    [train], [val] = split([counting(10, 31, 20)], 0.34)
    assert train.labels.shape == (10, 20, 20) and val.labels.shape == (10, 11, 20)
    joined = np.concatenate([train.voxels, val.voxels], axis=1)
    assert np.array_equal(joined, counting(10, 31, 20).voxels)
    several = [counting(4, 4, n) for n in range(4, 9)]
    train, val = split(several, 0.34)
    assert train == several[:3] and val == several[3:]


def test_loss_is_cross_entropy_and_dice():
    random = np.random.RandomState(0)
    logits = random.standard_normal((2, 3, 4, 5, 3))
    labels = random.randint(0, 3, (2, 3, 4, 5))
    targets = np.eye(3)[labels]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -np.log((p * targets).sum(-1)).mean()
    dice = [
        2 * (p[b, ..., c] * targets[b, ..., c]).sum() / (p[b, ..., c] + targets[b, ..., c]).sum()
        for b in range(2)
        for c in range(3)
    ]
    arrays = mx.array(logits), mx.array(targets)
    assert dice_and_cross_entropy(*arrays).item() == pytest.approx(
        entropy + 1 - np.mean(dice), rel=1e-5
    )
    sure = mx.array(np.where(targets > 0, 50.0, -50.0))
    assert dice_and_cross_entropy(sure, arrays[1]).item() < 1e-4
    assert dice_scores(np.array([3.0, 0, 0]), np.array([8.0, 5, 0])).tolist()[:2] == [0.75, 0]


def test_validation_is_the_dice_of_the_held_out_volume(tmp_path):
    trainer = make_trainer(recipe(out=str(tmp_path)))
    model, volume = trainer.model.eval(), trainer.source.val[0]
    # 31 x 21 x 57 voxels; the model itself sees at most one window of it here.
    corner = tuple(slice(n) for n in (16, 16, 16))
    trainer.source.val = [Labeled(*(part[corner] for part in volume))]
    trainer.source.val_size = 16**3
    dice, others = trainer.evaluate()
    truth = volume.labels[corner]
    logits = model(mx.array(volume.voxels[corner])[None])[0]
    found = np.array(logits.argmax(-1))
    both = (found == 1).sum() + (truth == 1).sum()
    assert dice == pytest.approx(2 * ((found == 1) & (truth == 1)).sum() / both)
    p = np.take_along_axis(np.array(mx.softmax(logits, axis=-1)), truth[..., None], -1)
    assert others["loss"] == pytest.approx(-np.log(p).mean(), rel=1e-4)


def test_what_needs_no_model():
    """The Dice of calling everything a nucleus, and of the threshold that is best in training."""

    def dice(found, truth):
        return dice_scores(np.array([(found & truth).sum()]), np.array([found.sum() + truth.sum()]))

    source = open_volumes(recipe(), RECORD)
    train, val = source.train[0].voxels[..., 0], source.val[0].voxels[..., 0]
    truth, held_out = source.train[0].labels > 0, source.val[0].labels > 0
    best = max(np.arange(-1, 2, 0.05), key=lambda level: dice(train > level, truth))
    assert dice(np.ones_like(held_out), held_out) == pytest.approx(0.519, abs=1e-3)
    assert dice(val > best, held_out) == pytest.approx(0.81, abs=0.01)


def test_a_short_run_learns_nuclei_and_resumes(tmp_path, monkeypatch):
    """36 updates; on the held-out third everything called a nucleus would have a Dice of 0.52."""
    monkeypatch.setattr(volumes, "ROUNDS", 8)
    settings = {"out": str(tmp_path / "run"), "epochs": 1, "lr": 5e-3, "warmup_epochs": 0}
    result = run(recipe(**settings, batch_size=4))
    assert result["outcome"] == "finished" and result["steps"] == 36
    assert result["val_dice"] > 0.6
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert lines[-1]["val_dice"] == pytest.approx(result["val_dice"], abs=1e-6)
    assert run(recipe(**settings, batch_size=4))["outcome"] == "finished before"
    model = NAUNETR.from_pretrained(tmp_path / "run/best")
    assert model.record.classes == ("background", "nucleus") and model.record.input_size == 16
    assert json.loads((tmp_path / "run/best/config.json").read_text())["training"]["val_dice"] > 0.6


@pytest.fixture
def folder(tmp_path):
    """Three CTs with labels, in NIfTI."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    random = np.random.RandomState(0)
    for index in range(3):
        voxels = random.standard_normal((17, 18, 19 + index)).astype(np.float32)
        save(tmp_path / f"images/{index}.nii.gz", voxels)
        save(tmp_path / f"labels/{index}.nii.gz", (voxels > 0).astype(np.uint8))
    return tmp_path


def save(path, voxels, affine=None):
    affine = np.diag([-1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def test_a_folder_of_nifti_files(folder):
    source = open_volumes(recipe(data=str(folder)), RECORD)
    assert [v.labels.shape for v in source.train] == [(17, 18, 19), (17, 18, 20)]
    assert len(source.val) == 1 and source.classes == ("class 0", "class 1")
    voxels, labels = source.train[0]
    raw = nibabel.load(folder / "images/0.nii.gz").get_fdata()
    assert np.array_equal(labels, voxels[..., 0] > -raw.mean() / raw.std())  # where 0 came to lie
    (folder / "classes.txt").write_text("air\nbone\nskin\n")
    coarse = Record("ct", "NAUNETR", {}, input_size=16, crop_mode="volume", spacing=(2.0, 2.0, 2.0))
    source = open_volumes(recipe(data=str(folder)), coarse)
    assert source.classes == ("air", "bone", "skin")
    assert source.train[0].labels.shape == source.train[0].voxels.shape[:3] == (8, 9, 19)


@pytest.mark.parametrize("names", [("imagesTr", "labelsTr"), ("images", "masks")])
def test_folders_as_others_call_them(folder, names):
    """Such as nnU-Net, which numbers channels; what is not used is said."""
    for was, now in zip(("images", "labels"), names, strict=True):
        (folder / was).rename(folder / now)
    for path in (folder / names[0]).iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    (folder / names[0] / "._a.nii.gz").write_bytes(b"\0")
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "z.nii.gz").write_bytes(b"")
    with pytest.warns(DataWarning, match=r"not used of .*: imagesTs/"):
        pairs = volume_files(folder)
    assert pairs and all(image.is_file() and labels.is_file() for image, labels in pairs)


def test_a_copy_is_not_validated_on(folder):
    images = sorted((folder / "images").iterdir())
    copy = images[-1].with_name(f"z{images[-1].name}")
    copy.write_bytes(images[0].read_bytes())
    with pytest.raises(ValueError, match=f"{copy.name} would be validated on but is a copy of"):
        check_copies([*images, copy], len(images))
    check_copies([*images, copy], len(images) + 1)


def test_what_is_refused(folder, tmp_path):
    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            make_trainer(recipe(data=str(folder), out=str(tmp_path), **changes))

    refused("a model of volumes needs crop none, smoothing 0", crop="shift", smoothing=0.1)
    refused("volumes must have 2 channels", model_args={**OWN["model_args"], "in_chans": 2})
    (folder / "classes.txt").write_text("air\n")
    refused(r"classes.txt must name 2 classes but names 1")
    (folder / "classes.txt").unlink()
    held_out = (folder / "labels/2.nii.gz").read_bytes()
    save(folder / "labels/2.nii.gz", np.zeros((17, 18, 21), np.uint8))
    refused("held out must have voxels of other classes than the first")
    (folder / "labels/2.nii.gz").write_bytes(held_out)
    labels = folder / "labels/1.nii.gz"
    save(labels, np.zeros((17, 18, 20), np.uint8), np.eye(4))
    refused(r"labels/1.nii.gz must lie on the grid of .*images/1.nii.gz")
    save(labels, np.full((17, 18, 20), 0.5, np.float32))
    refused("labels/1.nii.gz must hold class indices")
    labels.unlink()
    refused("labels lacks 1.nii.gz")
    with pytest.raises(ValueError, match="or be stardist's wheel, but has none"):
        make_trainer(recipe(data=str(folder / "labels"), out=str(tmp_path)))


def test_a_stopped_run_goes_on_with_the_same_cubes(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "ROUNDS", 1)
    settings = {"epochs": 1, "batch_size": 4, "val_fraction": 0.1}
    whole = run(recipe(**settings, out=str(tmp_path / "whole")))
    stopped = run(recipe(**settings, out=str(tmp_path / "parts"), max_minutes=1e-6))
    assert stopped["step"] == 1 < whole["step"] == 6
    assert run(recipe(**settings, out=str(tmp_path / "parts")))["outcome"] == "finished"
    found, expected = (
        mx.load(str(tmp_path / name / "last/model.safetensors")) for name in ("parts", "whole")
    )
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())


def test_options_of_other_runs_work_here_too(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "ROUNDS", 1)
    options = {"tune": "lora", "dtype": "bfloat16", "ema_decay": 0.9, "accumulate": 2}
    options |= {"epochs": 1, "batch_size": 4, "val_fraction": 0.1, "grad_checkpoint": True}
    result = run(recipe(**options, out=str(tmp_path / "run")))
    assert result["outcome"] == "finished" and 0 < result["val_dice"] <= 1
    model = NAUNETR.from_pretrained(tmp_path / "run/last")
    assert model(mx.zeros((1, 16, 16, 16, 1))).shape == (1, 16, 16, 16, 2)

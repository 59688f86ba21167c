"""`natten-zoo segment-volume`: the three files it writes, and what it refuses."""

import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.models import NAUNETR, NAUNETRConfig
from natten_zoo.pretrained import Record

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    mx.random.seed(1)
    model = NAUNETR(NAUNETRConfig(8, (1, 1), (1, 2), 3, num_classes=3)).eval()
    model.record = Record(
        name="tiny", architecture="NAUNETR", model={}, input_size=16, crop_mode="volume",
        num_classes=3, classes=("nothing", "bone", "skin"),
    )  # fmt: skip
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.RandomState(0).standard_normal((12, 20, 25)).astype(np.float32)
    affine = np.array([[0, 0, 3.0, 5], [-0.5, 0, 0, 6], [0, 1.0, 0, 7], [0, 0, 0, 1]])
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def run(capsys, *arguments):
    status = main(["segment-volume", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_it_writes_mask_picture_and_json(capsys, checkpoint, scan, tmp_path):
    path = tmp_path / "new" / "out.nii.gz"
    status, out, err = run(capsys, scan, "-m", checkpoint, "-o", path)
    assert (status, err) == (0, "")
    facts, mask, given = (
        json.loads((tmp_path / "new/out.json").read_text()),
        *map(nibabel.load, (path, scan)),
    )
    assert np.array_equal(mask.affine, given.affine) and mask.shape == given.shape
    assert facts["size"] == [12, 20, 25] and facts["spacing_mm"] == [0.5, 1.0, 3.0]
    voxels = np.asarray(mask.dataobj)
    for entry in facts["classes"]:
        assert entry["class"] == ("nothing", "bone", "skin")[entry["index"]]
        assert entry["voxels"] == (voxels == entry["index"]).sum()
        assert entry["mm3"] == pytest.approx(1.5 * entry["voxels"])
        assert f"{entry['share']:8.1%}" in out and entry["class"] in out
    assert sum(entry["voxels"] for entry in facts["classes"]) == 6000
    assert Image.open(tmp_path / "new/out.png").height > 100
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.json", "out.nii.gz", "out.png"]


def test_options_reach_the_model(capsys, checkpoint, scan, tmp_path):
    arguments = [scan, "-m", checkpoint, "-o", tmp_path / "o.nii"]
    status, out, _ = run(capsys, *arguments, "--window", 8, "--overlap", 0.25, "--json")
    assert status == 0 and json.loads(out)["mask"].endswith("o.nii")
    small = np.asarray(nibabel.load(tmp_path / "o.nii").dataobj)
    run(capsys, *arguments)
    assert (small != np.asarray(nibabel.load(tmp_path / "o.nii").dataobj)).any()
    status, _, err = run(capsys, *arguments, "--overlap", 1)
    assert status == 2 and "--overlap must be in [0, 1)" in err


def test_what_is_refused(capsys, checkpoint, tiny, scan, tmp_path):
    out = tmp_path / "o.nii.gz"
    status, _, err = run(capsys, scan, "-m", checkpoint, "-o", tmp_path / "o.png")
    assert status == 2 and "must end in .nii or .nii.gz" in err
    status, _, err = run(capsys, tmp_path / "none.nii.gz", "-m", checkpoint)
    assert status == 2 and "none.nii.gz: no such file" in err
    status, _, err = run(capsys, scan, "-m", tiny, "-o", out)
    assert status == 2 and "must be a NAUNETR but is a NAT" in err
    four = np.zeros((8, 8, 8, 3), np.float32)
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), tmp_path / "four.nii")
    status, _, err = run(capsys, tmp_path / "four.nii", "-m", checkpoint, "-o", out)
    assert status == 2 and "must have 1 channels, as the model expects, but has 3" in err
    four[0, 0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(four[..., 0], np.eye(4)), tmp_path / "nan.nii")
    status, _, err = run(capsys, tmp_path / "nan.nii", "-m", checkpoint, "-o", out)
    assert status == 2 and "1 of its voxels are not finite" in err and not out.exists()
    status, _, _ = run(capsys, tmp_path / "nan.nii", "-m", checkpoint, "-o", out, "--fill", 0)
    assert status == 0 and out.exists()
    assert main(["classify", str(tmp_path / "a.png"), "-m", str(checkpoint)]) == 2
    assert "must classify images but is made for volume" in capsys.readouterr().err


def test_the_input_is_not_overwritten(capsys, checkpoint, scan, tmp_path):
    before, link = scan.read_bytes(), tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    for out in (scan, link):
        status, _, err = run(capsys, scan, "-m", checkpoint, "-o", out)
        assert status == 2 and f"{out} would overwrite the input" in err
    assert scan.read_bytes() == before

"""`natten-zoo analyze-music`: what it prints and writes, and what it refuses."""

import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.models import AllInOne, AllInOneConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        mx.random.seed(len(name))
        AllInOne(AllInOneConfig(depth=1)).eval().save_pretrained(folder / name)
    return [folder / "one", folder / "two"]


@pytest.fixture
def track(tmp_path):
    path = tmp_path / "track.npz"
    np.savez(path, np.random.RandomState(0).rand(4, 3000, 81).astype(np.float32))
    return path


def run(capsys, *arguments):
    status = main(["analyze-music", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_analyze_music(capsys, models, track, tmp_path):
    out_file, plot = tmp_path / "new" / "track.json", tmp_path / "track.png"
    arguments = ["-o", out_file, "--plot", plot, "--beat-threshold", 0, "-m", *models]
    status, out, err = run(capsys, track, *arguments)
    assert (status, err) == (0, "")
    facts = json.loads(out_file.read_text())
    assert facts["duration"] == 30.0 and facts["beats"] == sorted(facts["beats"])
    assert f"30.00 s, {len(facts['beats'])} beats" in out
    sections = facts["sections"]
    assert (sections[0]["start"], sections[-1]["end"]) == (0.0, 30.0)
    assert out.count("\n") == 1 + len(sections)
    assert Image.open(plot).width > 1000
    status, out, _ = run(capsys, track, *arguments, "--json")
    assert status == 0 and json.loads(out) == facts


def test_bad_input(capsys, models, track, tmp_path):
    status, _, err = run(capsys, tmp_path / "track.wav", "-m", models[0])
    assert status == 2 and "must be an .npz file" in err
    status, _, err = run(capsys, tmp_path / "none.npz", "-m", models[0])
    assert status == 2 and "no such file" in err
    status, _, err = run(capsys, track, "-m", models[0], "-o", track)
    assert status == 2 and "track.npz would overwrite the input" in err
    np.savez(track, a=np.zeros(3), b=np.zeros(3))
    status, _, err = run(capsys, track, "-m", models[0])
    assert status == 2 and "one named 'spectrograms', but has ['a', 'b']" in err
    np.savez(track, spectrograms=np.zeros((81, 100, 4)), b=np.zeros(3))
    status, _, err = run(capsys, track, "-m", models[0])
    assert status == 2 and "[batch, 4 stems, frames, 81 bands]" in err

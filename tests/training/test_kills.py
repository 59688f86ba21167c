"""Real runs, killed at random changes of the file system, with damage before and after.

A run that is started again until it has finished ends with the bits of one that nothing happened
to, as long as one whole checkpoint was left of it; if none was, it says so and names the files.
"""

from __future__ import annotations

import random
import signal
import tarfile
from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image

from natten_zoo.pretrained.readers.digests import whole
from natten_zoo.training.checkpoint import LAST, PLACES, PREVIOUS, STATE_FILE
from tests.training.kills import Kill, damage, finetune
from tests.training.runs import RANDOM, tiny_recipe, write_images

ATTACKS, KILLS = 64, 4  # kills of each attack, unless nothing is left to go on from: over 200
# Three checkpoints change the file system about so often, a whole run 350 times.
EVENTS = 110
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Images in a folder, some of them to be converted, and the same in an archive."""
    pytest.importorskip("mlx.data", reason="no mlx-data: Linux on arm64, Python 3.14")
    folder = write_images(tmp_path_factory.mktemp("data") / "flowers", 8)
    for path in folder.glob("*/0.png"):
        Image.open(path).convert("L").save(path)
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, "flowers")
    return {"folder": folder, "archive": folder.with_suffix(".tar")}


def run(data: Path, out: Path, kill: Kill | None = None) -> tuple[int, str]:
    """The exit status of a run, and what it said."""
    recipe, log = out.with_suffix(".yaml"), out.with_suffix(".log")
    options = {"epochs": 4, "batch_size": 6, "save_every": 1, **RANDOM}
    recipe.write_text(tiny_recipe(data=str(data), out=str(out), **options).to_yaml())
    status = finetune(recipe, log, kill)
    return status, log.read_text(errors="replace")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict[str, Path]:
    """What runs that nothing happens to leave."""
    outs = {kind: tmp_path_factory.mktemp("undisturbed") / kind for kind in data}
    for kind, out in outs.items():
        status, said = run(data[kind], out)
        assert status == 0, said
    return outs


def attack(data: Path, out: Path, draw: random.Random) -> tuple[int, bool, list[str]]:
    """Kills and damage until the run has finished, or rightly refuses.

    Returns:
        How often it was killed, whether it finished, and the whole story.
    """
    kills, story = 0, []
    while True:
        torn = int(10 ** draw.uniform(0, 4.9)) if draw.random() < 0.4 else None
        kill = Kill(draw.randint(1, EVENTS), torn) if kills < KILLS else None
        here = [name for name in PLACES if (out / name).exists()]
        good = [name for name in here if whole(out / name, STATE_FILE)]
        status, said = run(data, out, kill)
        story += [f"{kill}, {good} of {here} whole: {status}, {said}"]
        if status == 2 and {LAST, PREVIOUS} & set(here) and not good:
            named = {LAST, PREVIOUS} & set(here)  # the others were never complete
            assert "can't go on" in said and all(str(out / name) in said for name in named), story
            return kills, False, story
        assert status == 0 or (kill and status in KILLED), story
        if status == 0:
            assert "outcome=finished" in said, story
            return kills, True, story
        kills += 1
        if draw.random() < 0.6:
            story += [damage(out, draw)]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, ATTACKS))]
)
def test_a_run_that_is_killed_and_damaged_ends_the_same(data, undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    kind = draw.choice(["folder", "archive"])
    kills, finished, story = attack(data[kind], tmp_path / "run", draw)
    assert kills == KILLS or not finished, story
    if finished:
        assert_same(undisturbed[kind], tmp_path / "run", story)


def assert_same(wanted: Path, got: Path, story: list[str]) -> None:
    names = ["last/training.safetensors", "last/model.safetensors"]
    if not any("best is lost" in part or "damage best" in part for part in story):
        names += ["best/model.safetensors"]
    for name in names:
        ours, theirs = mx.load(str(got / name)), mx.load(str(wanted / name))
        assert ours.keys() == theirs.keys()
        assert [n for n in ours if not mx.array_equal(ours[n], theirs[n])] == [], name

"""Checkpoints that are killed while they are written, and damaged before and after."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from natten_zoo.files import SUMS
from natten_zoo.pretrained.readers.digests import whole
from natten_zoo.training.checkpoint import (
    LAST,
    PREVIOUS,
    STATE_FILE,
    RunError,
    recover,
    write_folder,
)
from tests.training.kills import Kill

TOTAL = 1000
DATA = {"images": 9, "classes": ["a", "b"], "files": {}}


def position(step: int) -> dict:
    return {"step": step, "best": 0.5, "accuracy": None, "seconds": 1.0, **DATA}


def checkpoint(out: Path, step: int, **metadata: object) -> None:
    """What the trainer does, without a model."""
    facts = {"position": position(step), "shapes": {}, **metadata}
    text = {name: value if isinstance(value, str) else json.dumps(value)
            for name, value in facts.items()}  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / STATE_FILE).write_bytes(save({"a": np.full(500, step, np.int64)}, text))
        (folder / "config.json").write_text("{}")

    write_folder(out / LAST, fill, keep=out / PREVIOUS)


def step_of(folder: Path) -> int:
    content = (folder / STATE_FILE).read_bytes()
    assert whole(folder)
    return int.from_bytes(content[-8:], "little")


def cut(folder: Path) -> None:
    path = folder / STATE_FILE
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / STATE_FILE
    content = bytearray(path.read_bytes())
    content[-77] ^= 64
    path.write_bytes(content)


def become_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


def go_missing(folder: Path) -> None:
    (folder / STATE_FILE).unlink()


DAMAGE = [cut, flip, become_a_file, go_missing]


def dies(work: Callable[[], object], kill: Kill) -> bool:
    """Whether a process that does `work` was killed."""
    child = os.fork()
    if child == 0:
        kill.arm()
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def attack(out: Path, draw: random.Random) -> None:
    """Two checkpoints, damage, a kill in the next one or in the recovery, damage, recovery."""
    newest = 10
    for step in (newest - 1, newest):
        checkpoint(out, step)
    least = newest
    if draw.random() < 0.5:  # before: the run goes on from the other one
        draw.choice(DAMAGE)(out / LAST)
        least = newest - 1
    kill = Kill(draw.randrange(1, 30))

    def work() -> None:
        recover(out, TOTAL, DATA)
        checkpoint(out, newest + 1)

    if not dies(work, kill):
        least = newest + 1
    elif draw.random() < 0.5:  # after: one of several whole ones may be lost, never the last
        folders = [out / LAST, out / PREVIOUS, out / ".last.partial", out / ".previous.old"]
        good = sorted((step_of(f) for f in folders if whole(f)), reverse=True)
        if len(good) > 1 and whole(out / LAST) and step_of(out / LAST) == good[0]:
            draw.choice(DAMAGE)(out / LAST)
            least = good[1]
    recover(out, TOTAL, DATA)
    assert step_of(out / LAST) >= least
    hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert hidden == []
    checkpoint(out, newest + 2)  # and the run goes on
    assert step_of(out / LAST) == newest + 2 and step_of(out / PREVIOUS) >= least


@pytest.mark.parametrize("seed", range(60))
def test_a_kill_at_any_change_of_the_file_system_loses_nothing(tmp_path, seed):
    attack(tmp_path, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 400))
def test_many_kills(tmp_path, seed):
    attack(tmp_path, random.Random(seed))


def test_a_kill_between_the_renames_after_damage(tmp_path):
    """`last` damaged, the run went on from `previous`; the kill came before the new `last`."""
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / LAST).rename(tmp_path / ".last.partial")
    (tmp_path / PREVIOUS).rename(tmp_path / LAST)
    cut(tmp_path / LAST)
    found, damaged = recover(tmp_path, TOTAL, DATA)
    assert found == tmp_path / ".last.partial" and step_of(tmp_path / LAST) == 3
    assert len(damaged) == 1 and "training.safetensors: it is damaged" in damaged[0]
    assert (tmp_path / "last.damaged").exists()


def test_a_kill_within_the_digests_leaves_none(tmp_path):
    """With half of its digests a checkpoint would look whole, whatever became of the rest."""
    partial, event = tmp_path / ".last.partial", 1
    while dies(lambda: checkpoint(tmp_path, 1), Kill(event, torn=100)):
        assert not (partial / SUMS).exists()
        event += 1
    assert event > 5


@pytest.mark.parametrize("lines", [0, 1])
def test_a_checkpoint_without_a_digest_is_passed_over(tmp_path, lines):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    sums = (tmp_path / LAST / SUMS).read_text().splitlines(keepends=True)
    assert "config.json" in sums[0]
    (tmp_path / LAST / SUMS).write_text("".join(sums[:lines]))
    found, damaged = recover(tmp_path, TOTAL, DATA)
    assert found == tmp_path / PREVIOUS and "SHA256SUMS has no digest of it" in damaged[0]


def test_the_best_model_survives_a_kill_between_its_renames(tmp_path):
    checkpoint(tmp_path, 1)
    write_folder(tmp_path / "best", lambda folder: (folder / "a").write_text("old") and None)
    (tmp_path / "best").rename(tmp_path / ".best.old")
    recover(tmp_path, TOTAL, DATA)
    assert (tmp_path / "best" / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_a_checkpoint_that_was_not_finished_is_no_damage(tmp_path):
    checkpoint(tmp_path, 1)
    (tmp_path / ".last.partial").mkdir()
    assert recover(tmp_path, TOTAL, DATA) == (tmp_path / LAST, [])
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert recover(tmp_path / "nowhere", TOTAL, DATA) == (None, [])


@pytest.mark.parametrize(
    "metadata",
    [
        {"position": '{"step": 2, "be'},
        {"position": {"step": 2}},
        {"position": {**position(2), "step": "2"}},
        {"position": {**position(2), "step": True}},
        {"position": position(TOTAL + 1)},
        {"position": position(-1)},
        {"position": {**position(2), "images": None}},
        {"position": [2]},
        {"shapes": "[]"},
        {"shapes": "{" * 100_000},
    ],
)
def test_damaged_metadata_is_passed_over(tmp_path, metadata):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, **metadata)
    found, damaged = recover(tmp_path, TOTAL, DATA)
    assert found == tmp_path / PREVIOUS and str(tmp_path / LAST / STATE_FILE) in damaged[0]
    assert step_of(tmp_path / LAST) == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_whole_checkpoint_is_an_error_that_names_all(tmp_path, damage):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    for name in (LAST, PREVIOUS):
        damage(tmp_path / name)
    with pytest.raises(RunError, match=r"can't go on: .*last.*previous.* another 'out'"):
        recover(tmp_path, TOTAL, DATA)
    assert {LAST, PREVIOUS} <= {path.name for path in tmp_path.iterdir()}

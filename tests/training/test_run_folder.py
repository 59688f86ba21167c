"""A run's folder: one run at a time, its recipe, its metrics, and what a kill leaves in it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natten_zoo.data.labeled import open_labeled
from natten_zoo.data.stream import scan_images
from natten_zoo.files import BusyError, hold, write_whole
from natten_zoo.pretrained.readers.digests import whole
from natten_zoo.training import Recipe, run
from natten_zoo.training.progress import read_metrics

ONE = {"max_minutes": 1e-9}  # one update


def test_two_runs_in_one_folder(recipe):
    wanted = recipe()
    message = rf"{wanted.out} is in use by process {os.getpid()} on"
    with hold(Path(wanted.out, ".lock"), "this test"), pytest.raises(BusyError, match=message):
        run(wanted)
    assert run(dataclasses.replace(wanted, **ONE))["step"] == 1  # let go, though the file is there


def _hold_and_die(path: Path, ready) -> None:
    with hold(path, "x"):
        ready.set()
        os.kill(os.getpid(), 9)


def test_a_killed_process_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_and_die, args=(tmp_path / "lock", ready))
    process.start()
    process.join()
    assert ready.is_set() and process.exitcode == -9
    with hold(tmp_path / "lock", "x"):
        pass


BROKEN = ["model: [", "nonsense: 1", "\x00", "epochs: many"]


@pytest.mark.parametrize("text", [*BROKEN, "another"])
def test_a_recipe_is_what_the_checkpoint_was_trained_by(recipe, text):
    """`recipe.yaml` has no digest: a run is neither lost nor changed with it."""
    wanted, other = recipe(), recipe(lr=0.25)
    run(dataclasses.replace(wanted, **ONE))
    Path(wanted.out, "recipe.yaml").write_text(other.to_yaml() if text == "another" else text)
    with pytest.raises(ValueError, match="another recipe"):
        run(other)
    assert run(wanted)["outcome"] == "finished"
    assert Recipe.load(Path(wanted.out, "recipe.yaml")) == wanted


@pytest.mark.parametrize("text", BROKEN)
def test_a_run_whose_recipe_nobody_tells(recipe, text):
    wanted = recipe()
    run(dataclasses.replace(wanted, **ONE))
    for path in (Path(wanted.out, "recipe.yaml"), *Path(wanted.out).glob("*/config.json")):
        path.write_text(text)
    with pytest.raises(ValueError, match=r"the recipe of the run in .*run can't be read"):
        run(wanted)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "lo', "[1]", '{"loss": 1}', '{"step": "1"}', "\udcff"]
)
def test_a_bad_line_of_metrics_is_left_out_and_said(tmp_path, line):
    path, said = tmp_path / "metrics.jsonl", []
    good = b'{"step": 1, "loss": 2}\n'
    path.write_bytes(good + line.encode(errors="surrogateescape") + b"\n" + good)
    assert len(read_metrics(path, said.append)) == 2
    assert said == [f"{path}: damaged, and left out: line 2"]
    path.write_bytes(good + good[:9])  # a kill cut it short: nothing is wrong
    assert len(read_metrics(path, said.append)) == 1 and len(said) == 1


@pytest.mark.parametrize("change", ["name", "size", "exchange"])
def test_other_images_of_the_same_number_are_not_resumed_on(recipe, flowers, tmp_path, change):
    data = tmp_path / "data"
    shutil.copytree(flowers, data)
    wanted = recipe(data=str(data))
    run(dataclasses.replace(wanted, **ONE))
    one, other = data / "red" / "0.png", data / "blue" / "0.png"
    if change == "name":
        one.rename(data / "red" / "new.png")
    elif change == "size":
        Image.open(other).resize((9, 9)).save(one)
    else:
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
    with pytest.raises(ValueError, match=r"began with other files of (blue, )?red: as many"):
        run(wanted)


def test_a_flipped_bit_is_not_learned_from(recipe, capsys):
    wanted = recipe()
    for _ in range(2):
        run(dataclasses.replace(wanted, **ONE))
    with open(Path(wanted.out, "last", "training.safetensors"), "r+b") as file:
        file.seek(-5000, 2)
        byte = file.read(1)[0]
        file.seek(-5000, 2)
        file.write(bytes([byte ^ 64]))
    assert run(wanted)["outcome"] == "finished"
    said = capsys.readouterr().err
    assert "passed over: " in said and "training.safetensors: it is damaged" in said
    assert f"resuming {Path(wanted.out, 'previous')} at update 1 of" in said


@pytest.mark.parametrize("harm", ["flipped", "lost"])
def test_a_best_model_that_is_lost_is_replaced(recipe, capsys, harm):
    wanted = recipe(epochs=3)
    for _ in range(3):  # the first epoch
        run(dataclasses.replace(wanted, **ONE))
    best = Path(wanted.out, "best")
    if harm == "lost":
        shutil.rmtree(best)
    else:
        content = (best / "model.safetensors").read_bytes()
        (best / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(wanted)["outcome"] == "finished"
    assert f"{best} is lost or damaged" in capsys.readouterr().err
    assert whole(best)


def test_the_same_images_elsewhere_are_the_same(flowers, tmp_path):
    shutil.copytree(flowers, tmp_path / "moved")
    prints = [open_labeled(f, 0.2, 0, tmp_path).fingerprint for f in (flowers, tmp_path / "moved")]
    assert prints[0] == prints[1] and len(set(prints[0].values())) == 3


def test_what_a_kill_left_of_an_archive_goes(flowers, tmp_path):
    with tarfile.open(tmp_path / "flowers.tar", "w") as tar:
        tar.add(flowers, "flowers")
    unpacked = tmp_path / "unpacked"
    (unpacked / ".partial" / "flowers").mkdir(parents=True)
    images = open_labeled(tmp_path / "flowers.tar", 0.2, 0, unpacked)
    assert len(images.train.files + images.val.files) == 30
    assert [path.name for path in unpacked.iterdir() if path.name.startswith(".")] == []


def test_converted_images_are_used_again_and_old_ones_go(tmp_path, monkeypatch):
    files, converted = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "converted"
    for file in files:
        Image.fromarray(np.zeros((5, 7), np.uint8)).save(file)
    first = scan_images(files, converted, 2)
    assert all(scan.file.parent == converted and scan.aspect == 7 / 5 for scan in first)
    (converted / ".left.partial").write_bytes(b"half")
    written = {scan.file: scan.file.stat().st_mtime_ns for scan in first}
    assert scan_images(files, converted, 2) == first
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == written
    os.utime(files[0], ns=(0, 0))  # changed
    second = scan_images(files, converted, 2)
    assert second[0].file != first[0].file and second[1] == first[1]
    assert sorted(converted.iterdir()) == sorted(scan.file for scan in second)


def test_a_partial_file_is_used_by_the_next_writer(tmp_path):
    (tmp_path / ".a.partial").write_bytes(b"left by a kill, and longer")
    write_whole(tmp_path / "a", lambda file: file.write(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "a", lambda file: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def _write_often(path: Path, text: bytes) -> None:
    for _ in range(200):
        write_whole(path, lambda file: [file.write(text) for _ in range(50)])


def test_several_writers_of_one_file_take_turns(tmp_path):
    context = multiprocessing.get_context("spawn")
    texts = [letter * 1000 for letter in (b"a", b"b", b"c")]
    writers = [context.Process(target=_write_often, args=(tmp_path / "f", t)) for t in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "f").exists():
            seen.add((tmp_path / "f").read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen <= {text * 50 for text in texts}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]

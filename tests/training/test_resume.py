"""Runs that are killed and started again, as processes of their own."""

from __future__ import annotations

import dataclasses
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import mlx.core as mx
import pytest

from natten_zoo.cli import main
from natten_zoo.training import run
from natten_zoo.training.progress import read_metrics
from tests.training.runs import RANDOM, spawn


def assert_identical(a: Path, b: Path) -> None:
    for file in ("last/training.safetensors", "last/model.safetensors", "best/model.safetensors"):
        ours, theirs = mx.load(str(a / file)), mx.load(str(b / file))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not mx.array_equal(ours[name], theirs[name])] == []


def values(folder: Path) -> list[dict]:
    timing = {"images_per_second", "data_wait", "memory_gb", "seconds"}
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_for_bit_the_same(recipe, tmp_path, seed):
    # Long enough that no run ends before its last kill, on a fast machine either.
    options = {**RANDOM, "epochs": 30, "save_every": 1 + seed, "seed": seed}
    whole = recipe(out=str(tmp_path / "whole"), **options)
    run(whole)
    killed = recipe(out=str(tmp_path / "killed"), **options)
    metrics, moments = Path(killed.out, "metrics.jsonl"), random.Random(seed)
    for _ in range(4):
        process = spawn(killed)
        done = len(read_metrics(metrics))
        while process.poll() is None and len(read_metrics(metrics)) < done + 2:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
    process = spawn(killed)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "outcome=finished" in out and "resuming" in err
    assert_identical(Path(whole.out), Path(killed.out))
    assert values(Path(whole.out)) == values(Path(killed.out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_run_goes_on(recipe, number):
    wanted = recipe(epochs=60)
    process = spawn(wanted)
    while process.poll() is None and len(read_metrics(Path(wanted.out, "metrics.jsonl"))) < 2:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert f"outcome=stopped by {number.name}" in out, err
    stopped = read_metrics(Path(wanted.out, "metrics.jsonl"))[-1]["step"]
    result = run(recipe(epochs=60, max_minutes=1e-9))
    assert result["outcome"].startswith("stopped after") and result["step"] == stopped + 1


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lion", "schedule": "step", "accumulate": 2},
        {"optimizer": "sgd", "dtype": "bfloat16", "layer_decay": 0.7},
        {"tune": "lora", "lora_rank": 2, "grad_checkpoint": True},
        {"clip_norm": 0.0, "freeze": ["patch_embed"]},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_kind_of_run_resumes_exactly(recipe, tmp_path, options):
    whole = recipe(out=str(tmp_path / "whole"), **RANDOM, **options)
    run(whole)
    parts = recipe(out=str(tmp_path / "parts"), **RANDOM, **options)
    for _ in range(3):  # one update each
        run(dataclasses.replace(parts, max_minutes=1e-9))
    assert run(parts)["outcome"] == "finished"
    assert_identical(Path(whole.out), Path(parts.out))


def test_a_full_disk_stops_the_run_and_loses_nothing(recipe, tmp_path):
    whole, full = (recipe(out=str(tmp_path / n), epochs=4, save_every=1) for n in ("a", "b"))
    run(whole)
    run(dataclasses.replace(full, max_minutes=1e-9))
    last = Path(full.out, "last")
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    # A limit on the size of files stands for the full disk: the same writes fail.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limit[1]))
    try:
        with pytest.raises(ValueError, match=r"last could not be written: .*before it is intact"):
            run(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before
    assert run(full)["outcome"] == "finished"
    assert_identical(Path(whole.out), Path(full.out))


def test_a_folder_that_cannot_be_written_is_an_error(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(out="").to_yaml())
    command = ["finetune", "-c", str(path), "--out", str(tmp_path / "file" / "run")]
    assert main(command) == 2
    assert "run: not a directory" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(recipe, tmp_path, capsys):
    whole, cut = recipe(out=str(tmp_path / "whole")), recipe(out=str(tmp_path / "cut"))
    run(whole)
    for _ in range(2):  # one update each
        run(dataclasses.replace(cut, max_minutes=1e-9))
    last, previous = (Path(cut.out, n, "training.safetensors") for n in ("last", "previous"))
    last.write_bytes(last.read_bytes()[:-100])
    assert run(cut)["outcome"] == "finished"
    assert f"resuming {previous.parent} at update 1 of" in capsys.readouterr().err
    assert_identical(Path(whole.out), Path(cut.out))
    for file in (last, previous):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"can't go on: .*last.*previous.* another 'out'"):
        run(cut)


def test_other_images_are_not_resumed_on(recipe, flowers, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(flowers, data)
    wanted = recipe(data=str(data))
    run(dataclasses.replace(wanted, max_minutes=1e-9))
    shutil.copy(data / "red" / "0.png", data / "red" / "more.png")
    with pytest.raises(ValueError, match="began with 24 images to train on and now there are 25"):
        run(wanted)


def test_other_classes_are_not_resumed_on(recipe, flowers, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(flowers, data)
    wanted = recipe(data=str(data))
    run(dataclasses.replace(wanted, max_minutes=1e-9))
    (data / "blue").rename(data / "violet")  # the same images, but red now comes before
    with pytest.raises(ValueError, match="class 0 was blue and now is green; give the run another"):
        run(wanted)
    shutil.rmtree(data / "violet")
    with pytest.raises(ValueError, match="began with 3 classes and now there are 2"):
        run(wanted)


def test_a_finished_run_says_so_and_another_recipe_is_refused(recipe):
    assert run(recipe())["outcome"] == "finished"
    again = run(recipe(workers=1))
    assert again["outcome"] == "finished before" and again["step"] == again["steps"]
    with pytest.raises(ValueError, match=r"another recipe \(lr 0.005 -> 0.1\)"):
        run(recipe(lr=0.1))

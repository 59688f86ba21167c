"""Metrics reach TensorBoard's event files and Weights & Biases' offline runs, and are read back."""

from __future__ import annotations

import dataclasses
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natten_zoo.training import run
from natten_zoo.training.progress import read_metrics


def scalars(file: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of every scalar in an event file, a sequence of TFRecords."""
    from tensorboardX.proto.event_pb2 import Event

    data, start = file.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)  # then a checksum, and one at the end
        event = Event.FromString(data[start + 12 : start + 12 + length])
        yield from ((event.step, v.tag, v.simple_value) for v in event.summary.value)
        start += 16 + length


def read_tensorboard(out: Path) -> dict[tuple[int, str], float]:
    files = sorted(out.glob("tensorboard/events.*"))
    return {(step, name): value for file in files for step, name, value in scalars(file)}


def lines(out: Path) -> dict[tuple[int, str], float]:
    return {
        (line["step"], name): value
        for line in read_metrics(out / "metrics.jsonl")
        for name, value in line.items()
        if name != "step"
    }


def test_tensorboard_gets_every_number(recipe):
    pytest.importorskip("tensorboardX")
    wanted = recipe(report_to="tensorboard")
    run(wanted)
    written = lines(Path(wanted.out))
    assert {"loss", "val_accuracy", "images_per_second"} <= {name for _, name in written}
    assert read_tensorboard(Path(wanted.out)) == pytest.approx(written, rel=1e-5)


def test_a_resumed_run_goes_on_in_tensorboard(recipe):
    pytest.importorskip("tensorboardX")
    options = {"report_to": "tensorboard", "epochs": 3, "save_every": 1}
    run(recipe(max_minutes=1e-9, **options))
    out = Path(recipe().out)
    assert {step for step, _ in read_tensorboard(out)} == {1}
    run(recipe(**options))
    assert {step for step, _ in read_tensorboard(out)} == set(range(1, 10))


def records(file: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log format after a header of seven bytes."""
    data, start, record = file.read_bytes(), 7, b""
    while start + 7 <= len(data):
        if (room := BLOCK - start % BLOCK) < 7:  # no record begins in the last bytes of a block
            start += room
            continue
        length, kind = struct.unpack_from("<HB", data, start + 4)  # after a checksum
        record += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


BLOCK = 32768


def test_weights_and_biases_gets_every_number(recipe, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wanted = recipe(report_to="wandb")
    run(dataclasses.replace(wanted, max_minutes=1e-9))
    run(wanted)
    files = sorted(Path(wanted.out).glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run, resumed
    history = [Record.FromString(record).history for file in files for record in records(file)]
    logged: dict[str, list[float]] = {"loss": [], "val_accuracy": []}
    for item in (item for line in history for item in line.item):
        name = item.key or item.nested_key[0]
        if name in logged:
            logged[name].append(float(item.value_json))
    metrics = read_metrics(Path(wanted.out, "metrics.jsonl"))
    assert logged == {name: [line[name] for line in metrics if name in line] for name in logged}
    assert all(logged.values())


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named(recipe, monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{tracker} needs `pip install 'natten-zoo\[{tracker}"):
        run(recipe(report_to=tracker))

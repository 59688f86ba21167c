from __future__ import annotations

import json
import time

import mlx.core as mx
import pytest

from natten_zoo.training import Recipe
from natten_zoo.training.progress import MetricsFile, Progress, read_metrics

METRICS = {"loss": mx.array(1.0), "accuracy": mx.array(0.5)}


@pytest.mark.parametrize("waited", [0.0, 0.005])
def test_a_loader_that_starves_the_step_is_said_once(tmp_path, capsys, waited):
    progress = Progress(Recipe(batch_size=4), tmp_path, steps=3, done=0, rank=0)
    for step in range(3):
        for _ in range(10):
            time.sleep(0.005)
            progress.step(waited)
        progress.log(step + 1, 0, METRICS)
    progress.close()
    text = capsys.readouterr().err
    assert text.count("the step waits for data") == (1 if waited else 0)
    assert "loss 1.000 acc 0.500" in text and "img/s" in text and "GB" in text
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["data_wait"] > 0.2 for line in lines] == [bool(waited)] * 3
    assert all(0 < line["images_per_second"] < 4 / 0.005 for line in lines)


def test_other_processes_write_and_print_nothing(tmp_path, capsys):
    progress = Progress(Recipe(), tmp_path, steps=1, done=0, rank=1)
    progress.step(0.0)
    progress.log(1, 0, METRICS)
    progress.say("nobody hears this")
    progress.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_lines_after_the_checkpoint_and_a_torn_line_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"st')
    MetricsFile(path, step=2).write({"step": 3, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]

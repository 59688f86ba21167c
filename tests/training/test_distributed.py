"""Two processes on one machine against one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from natten_zoo.training import run
from natten_zoo.training.progress import read_metrics
from tests.training.runs import spawn

PORT = 20_000 + os.getpid() % 1_000 * 10  # others may test on this machine at the same time
LAUNCH = (
    *(str(Path(sys.executable).with_name("mlx.launch")), "-n", "2"),
    *("--starting-port", str(PORT), "--"),
)
# What is drawn is drawn per process; without it both runs see the same images.
FIXED = {"crop": "none", "flip": False, "drop_path": 0.0}


def test_two_processes_are_one_with_the_same_global_batch(recipe, tmp_path):
    one = recipe(out=str(tmp_path / "one"), **FIXED)
    two = recipe(out=str(tmp_path / "two"), **FIXED)
    run(one)
    out, err = spawn(two, LAUNCH).communicate(timeout=120)
    assert out.count("outcome=finished") == 1, err
    ours, theirs = (mx.load(str(Path(r.out, "last", "model.safetensors"))) for r in (one, two))
    for name, value in ours.items():
        np.testing.assert_allclose(np.array(value), np.array(theirs[name]), atol=1e-4)
    values = [read_metrics(Path(r.out, "metrics.jsonl")) for r in (one, two)]
    assert len(values[0]) == len(values[1])


def test_a_process_that_dies_takes_the_run_down_and_it_resumes(recipe):
    wanted = recipe(epochs=10, save_every=1, drop_path=0.3)
    process = spawn(wanted, LAUNCH)
    metrics = Path(wanted.out, "metrics.jsonl")
    while process.poll() is None and len(read_metrics(metrics)) < 4:
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert read_metrics(metrics)[-1]["step"] < 30
    out, err = spawn(wanted, LAUNCH).communicate(timeout=120)
    assert "resuming" in err and out.count("outcome=finished") == 1, err

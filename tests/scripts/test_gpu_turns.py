"""Checkouts that are timed in turns, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_turns.py"
CHECKOUT = """
import time
import mlx.core as mx

SETS = 2
SHAPES = {"nat": [(f"shape {n}",) for n in range(9)]}
print("a library that prints")


def ours(shape, dtype):
    def step(i):
        time.sleep(0.001)
        return mx.array(i)

    return {"forward": step, "both": step}
"""


def test_each_has_its_own_kernels(tmp_path):
    for name in ("before", "now"):
        (tmp_path / name / "scripts").mkdir(parents=True)
        script = tmp_path / name / "scripts" / "gpu_check.py"
        script.write_text(CHECKOUT)
    command = [sys.executable, str(SCRIPT), "a=before", "b=now", "--dtypes", "float32"]
    command += ["--rounds", "2", "--out", "turns.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "turns.json").read_text())
    assert [r["shape"] for r in rows] == [f"shape {n}" for n in range(9)]
    assert all(r[step].keys() == {"a", "b"} for r in rows for step in ("forward", "both"))
    assert done.stdout.splitlines()[-1].startswith("both {'a': ")

"""The compiled tier as an extension of MLX on arm64, as a Mac has it, in an emulator of the CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "on_arm64.py"
TESTS = "attention or unfused or window or strides or repeat or streams or lengths"


def missing() -> str | None:
    spec = importlib.util.spec_from_file_location("on_arm64", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.missing()


@pytest.mark.skipif(missing() is not None, reason=f"to emulate arm64: {missing()}")
@pytest.mark.slow
def test_right_on_arm64():
    """Random problems against float64, and gradients equal in bits."""
    command = [sys.executable, str(SCRIPT), "tests/ops/native/test_native.py", "-k", TESTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout

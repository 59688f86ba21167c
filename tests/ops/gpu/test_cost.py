"""scripts/kernel_cost.py counts what the arithmetic says it must find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.metal_emulator.fixtures import toolchain  # noqa: F401

ROOT = Path(__file__).parents[3]


def test_counts_a_row(toolchain):  # noqa: F811
    command = [sys.executable, str(ROOT / "scripts" / "kernel_cost.py"), "--cases", "1-D K7 D32"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    forward, backward = (r.split() for r in result.stdout.splitlines()[1:] if "ours" in r)
    # Eight queries see 14 keys, 16 with whole fragments, in two products of D / 8 matrices each.
    assert [forward[6], backward[6]] == ["260", "772"]
    assert 2.0 <= float(forward[8]) < 2.4
    assert float(backward[8]) >= 3.5 * float(forward[8]) - 0.5

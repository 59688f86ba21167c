"""scripts/kernel_cost.py counts what the arithmetic says it must find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.metal_emulator.fixtures import toolchain  # noqa: F401

ROOT = Path(__file__).parents[3]


def rows(core: str) -> list[list[float]]:
    """Bytes that must be moved, threadgroup memory, matrices, waste, operations: both ways."""
    command = [sys.executable, str(ROOT / "scripts" / "kernel_cost.py"), "--cases", "1-D K7 D32"]
    result = subprocess.run([*command, "--core", core], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ours = [row.split() for row in result.stdout.splitlines()[1:] if "ours" in row]
    return [[float(x) for x in row[6:11]] for row in ours]


def test_counts_products_of_matrices(toolchain):  # noqa: F811
    """Eight queries see 14 keys, 16 in whole fragments: two products of D / 8 matrices each."""
    forward, backward = rows("matrix")
    assert [forward[0], backward[0]] == [260, 772]
    assert 2.0 <= forward[2] < 2.4
    assert backward[2] >= 3.5 * forward[2] - 0.5


def test_counts_products_of_single_lanes(toolchain):  # noqa: F811
    """Four queries see ten keys, of 2 * 64 bytes each; a tile of 128 has written 134 of them.

    Beside them each thread reads where the slab lies, how many there are, its box twice, and
    how far apart the rows of keys and values lie; and in the end where its own rows do.
    """
    forward, backward = rows("scalar4")
    assert [forward[0], backward[0]] == [260, 772]
    assert forward[1] == pytest.approx(10 * 128 / 4 + 134 * 128 / 128 + 150, rel=0.02)
    assert forward[2] == backward[2] == 0
    assert forward[4] > 2 * 32 * 10  # multiply-adds alone

"""docs/kernels.md says what registers the kernels take: the goals are met there, and it is true."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "kernels.md"


def rows() -> list[tuple[str, int, str, int]]:
    """Kernel, head_dim, dtype and spilled words, of every cell of the printed table."""
    found = []
    for line in PAGE.read_text("utf-8").splitlines():
        if row := re.match(r"\| (forward|backward_\w+) \d-D K\d+ D(\d+) \|(.*)", line):
            spilled = re.findall(r" (?:matrix|scalar)[^|]*\| [\d.]+ / (\d+) \|", row[3])
            assert len(spilled) == 2, line
            for dtype, words in zip(("float16", "float32"), spilled, strict=True):
                found.append((row[1], int(row[2]), dtype, int(words)))
    return found


def test_what_is_spilled():
    """By the printed table, which has 1-D, 2-D and 3-D with head_dims up to 256."""
    assert len(rows()) == 3 * 3 * 4 * 2
    for kernel, head_dim, dtype, spilled in rows():
        if head_dim <= 64 and dtype == "float16" and kernel != "backward_key":
            assert spilled == 0, (kernel, head_dim)
        elif head_dim <= 128:
            assert spilled <= 16, (kernel, head_dim, dtype)


def test_a_table_of_other_kernels_is_found_out(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("registers", ROOT / "scripts" / "registers.py")
    registers = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "registers", registers)
    spec.loader.exec_module(registers)
    monkeypatch.setattr(registers, "cells", lambda *_, **__: "matrix | 100 / 0 | 300 | 512")
    one = "matrix | 100 / 0 | 300 | 512"
    table = f"| forward 2-D K7 D64 | {one} | 9 / 0 | {one} | 9 / 0 |"
    only = "forward 2-D K7 D64 "
    assert registers.check(table, "", "", only) == []
    assert len(registers.check(table.replace("100 / 0", "101 / 0", 1), "", "", only)) == 1
    assert len(registers.check("", "", "", only)) == 2
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["registers.py", "--check", str(page), "--only", only])
    for text, wrong in ((table, False), ("", True)):
        page.write_text(text)
        with pytest.raises(SystemExit) as done:
            registers.main()
        assert (done.value.code != 0) == wrong  # "" were a failure, too


@pytest.mark.slow
@pytest.mark.asahi
@pytest.mark.skipif("ASAHI_CLC" not in os.environ, reason="ASAHI_CLC names no compiler for an M1")
def test_the_printed_table_is_todays():
    command = [sys.executable, str(ROOT / "scripts" / "registers.py"), "--check", str(PAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

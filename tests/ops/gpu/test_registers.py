"""docs/kernels.md says what registers the kernels take: the goals are met there, and it is true."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_table_of_other_kernels_is_found_out(monkeypatch):
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

"""scripts/cost_table.py: lines of kernel_cost.py become rows of docs/kernels.md."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "cost_table.py"


def fill(page: Path, printed: str, *options: str) -> list[str]:
    """The row's cells afterwards."""
    command = [sys.executable, str(SCRIPT), str(page), *options]
    subprocess.run(command, input=printed, text=True, check=True)
    rows = [x for x in page.read_text("utf-8").splitlines() if x.startswith("| 2-D K7 D32 | back")]
    assert len(rows) == 1
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


@pytest.fixture
def line(monkeypatch):
    """How the script prints what it counted."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("kernel_cost")
    case = script.Case("2-D K7 D32", (56, 56), 7, 32)

    def printed(who: str, operations: float) -> str:
        counted = script.Cost(case, who, "backward", 1438, 9352, 21.4, operations)
        return str(script.line(counted))

    return printed


def test_rows_are_filled_in_and_all_else_stays(tmp_path, line):
    page, before = tmp_path / "page.md", (ROOT / "docs" / "kernels.md").read_text("utf-8")
    page.write_text(before, "utf-8")
    cells = fill(page, line("ours", 256_000))  # 2000 cycles, and 107 of products
    assert cells[2:8] == ["1438", "772", "9352", "21.4", "256000", "0"]
    assert cells[8].startswith("2107 (") and cells[10] == "2107"
    assert fill(page, line("natten-mlx", 1_280_000))[-2:] == ["10107", "4.8"]
    cells = fill(page, line("ours", 128_000), "--nax")
    assert cells[10:] == ["2107", "1107", "1.9", "10107", "4.8"]
    after = page.read_text("utf-8").splitlines()
    changed = [(a, b) for a, b in zip(before.splitlines(), after, strict=True) if a != b]
    assert len(changed) == 1

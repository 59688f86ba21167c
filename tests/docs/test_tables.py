"""Tables of the documents that a command prints are what it prints."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from natten_zoo import get_record
from natten_zoo.cli._results import read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A comment with the command, and the table under it.
MADE = re.compile(r"^<!-- python (scripts/\S+\.py[^\n]*) -->\n\n?((?:\|[^\n]*\n)+)", re.M)
TABLES = [
    pytest.param(*found.groups(), id=f"{page.stem}-{found[1]}")
    for page in PAGES
    for found in MADE.finditer(page.read_text())
]


@pytest.mark.parametrize(("command", "table"), TABLES)
def test_the_table_is_what_the_command_prints(command, table, capsys, monkeypatch):
    script, *arguments = shlex.split(command)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().out == table


def test_every_comment_has_its_table():
    comments = sum(page.read_text().count("<!-- python scripts/") for page in PAGES)
    assert len(TABLES) == comments


def test_all_measurements_are_shown():
    shown = " ".join(parameters.values[0] for parameters in TABLES)
    assert not [
        p.name for p in (ROOT / "results").glob("*.csv") if f"results/{p.name}" not in shown
    ]


def test_measured_accuracies_are_those_of_the_records():
    rows = read(ROOT / "results/models.csv")
    assert len(rows) >= 2
    for row in rows:
        assert float(row["accuracy"]) == get_record(row["model"]).top1


def test_quantized_models_are_smaller_and_hardly_worse():
    before, *after = read(ROOT / "results/quantization.csv")
    assert before["model"] == "nat_pico_fashion" and len(after) == 10
    for row in after:
        assert row["model"].startswith("nat_pico_fashion, ") and row["images"] == before["images"]
        assert float(row["size_mib"]) < float(before["size_mib"]) / 2
        assert abs(float(row["accuracy"]) - float(before["accuracy"])) < 2.5

"""Tables that grow: a header once, a line per measurement, nothing of another table touched."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from natten_zoo import create_model
from natten_zoo.cli import _results, main
from natten_zoo.tasks.classification import output_names

SCRIPT = Path(__file__).parents[2] / "scripts/results_table.py"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_grows(tmp_path, monkeypatch):
    path = tmp_path / "new" / "table.csv"
    monkeypatch.setattr(sys, "argv", ["/bin/natten-zoo", "evaluate", "my photos"])
    _results.append(path, model="a, b", accuracy="94.5")
    _results.append(path, model="c", metric="top-1")
    first, second = rows(path)
    assert (first["model"], first["accuracy"], first["metric"]) == ("a, b", "94.5", "")
    assert first["command"] == "natten-zoo evaluate 'my photos'" and "mlx " in first["versions"]
    assert tuple(second) == _results.COLUMNS and second["device"]
    shown = _results.markdown(path, ("model", "command"))
    assert shown.splitlines()[2] == "| a, b | `natten-zoo evaluate 'my photos'` |"


def test_the_script_prints_it(tmp_path, capsys, monkeypatch):
    _results.append(tmp_path / "t.csv", model="x", accuracy="1.00")
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path / "t.csv"), "model", "accuracy"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == "| model | accuracy |\n| --- | --- |\n| x | 1.00 |\n"


def test_the_script_turns_lines_into_columns(tmp_path, capsys, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text(
        "case,who,ms,all\nA,we,2.0,30\nA,they,5.0,60\nA,others,4.0,\nB,we,1,\nB,they,99,\n"
    )
    columns = ["we=we:ms/all", "times=they,others over we:ms/all"]
    given = ["table", "--rows", "case", "--of", "who", str(table)]
    monkeypatch.setattr(sys, "argv", [*given, *columns])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "| case | we | times |",
        "| --- | --- | --- |",
        "| A | 2.0 / 30 | 2.0 / 2.0 |",
        "| B | 1 | 99 |",
    ]
    monkeypatch.setattr(sys, "argv", [*given[:3], str(table)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "go together" in capsys.readouterr().err


def test_another_table_stays(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns model"):
        _results.append(path, model="x")
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(ValueError, match="no columns speed"):
        _results.append(tmp_path / "new.csv", speed=3)
    assert not (tmp_path / "new.csv").exists()


def test_evaluate_and_quantize_write_lines(tmp_path, capsys):
    names = output_names(create_model("nat_pico_fashion"))
    for index, name in enumerate(names):
        folder = tmp_path / "data" / name.replace("/", "_")
        folder.mkdir(parents=True)
        Image.new("L", (28, 28), 20 * index).save(folder / "a.png")
    table, data = tmp_path / "table.csv", str(tmp_path / "data")
    assert main(["evaluate", data, "--csv", str(table)]) == 0
    quantize = ["quantize", "nat_pico_fashion", str(tmp_path / "q"), "--bits", "4"]
    assert main([*quantize, "--data", data, "--csv", str(table)]) == 0
    alone = tmp_path / "alone.csv"
    assert main([*quantize, "--overwrite", "--data", data, "--csv", str(alone)]) == 0
    assert [row["model"] for row in rows(alone)] == ["nat_pico_fashion", "nat_pico_fashion, 4 bits"]
    evaluated, after = rows(table)  # what it was before was known
    assert float(evaluated["images_per_second"]) > 0 and evaluated["images"] == "10"
    assert (evaluated["model"], evaluated["data"]) == ("nat_pico_fashion", data)
    assert after["model"] == "nat_pico_fashion, 4 bits" and after["images"] == "10"
    assert float(after["size_mib"]) < 0.5 * float(evaluated["size_mib"])
    assert "top-1" in capsys.readouterr().out

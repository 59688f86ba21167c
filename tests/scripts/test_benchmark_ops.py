"""The benchmark of the operators runs, and its baseline computes what it is a baseline for."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from natten_zoo import ops

SCRIPT = Path(__file__).parents[2] / "scripts/benchmark_ops.py"
sys.path.insert(0, str(SCRIPT.parent))
import benchmark_ops  # noqa: E402
from benchmark_contestants import Case, Contestant, gather  # noqa: E402


@pytest.mark.parametrize(
    "case",
    [
        Case("1-D", (20,), 2, 5, is_causal=True),
        Case("2-D", (9, 11), 2, (3, 4), dilation=2),
        Case("3-D", (4, 5, 6), 1, 3),
    ],
    ids=lambda case: case.name,
)
def test_the_baseline_is_neighborhood_attention(case):
    shape = (2, *case.spatial, case.heads, case.head_dim)
    q, k, v = (mx.random.normal(shape) for _ in range(3))
    function = getattr(ops, f"na{len(case.spatial)}d")
    want = function(q, k, v, case.kernel_size, 1, case.dilation, case.is_causal)
    assert mx.allclose(gather(case)(q, k, v), want, atol=1e-5)


def test_floors():
    case = Case("causal", (5,), 2, 3, is_causal=True, head_dim=4)
    assert case.fused_multiply_adds() == (1 + 2 + 3 + 3 + 3) * 2 * 2 * 4


def test_the_script_writes_a_table_and_a_plot(tmp_path):
    command = [
        sys.executable, SCRIPT, "--filter", "7x7, 16", "--tiers", "pure", "--rounds", "1",
        "--csv", tmp_path / "ops.csv", "--json", tmp_path / "ops.json",
        "--plot", tmp_path / "ops.png",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "gather" in done.stdout and "x inputs" in done.stdout
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert [r["contestant"] for r in rows] == ["gather", "pure"]
    assert all(r["forward_ms"] > 0 and r["both_ms"] > 0 and r["peak_bytes"] > 0 for r in rows)
    table = list(csv.DictReader((tmp_path / "ops.csv").read_text().splitlines()))
    assert [r["contestant"] for r in table] == ["gather", "pure"]
    assert table[0]["forward_ratio"] == "1.0" and float(table[1]["both_ms"]) > 0
    assert (tmp_path / "ops.png").stat().st_size > 5000


MISSING = """
raise ModuleNotFoundError("No module named 'natten_mlx'")
"""
PEER = """
import sys
if sys.platform != "darwin":
    raise ImportError("macOS only")
from natten_zoo import ops
def set_backend(name):
    assert name in ("pure", "auto")
def na2d(q, k, v, kernel_size, stride, dilation, is_causal):
    return ops.na2d(q, k, v, kernel_size, stride, dilation, is_causal)
"""


@pytest.mark.parametrize("installed", [True, False])
def test_natten_mlx_takes_part_where_it_is_installed(installed, tmp_path):
    (tmp_path / "natten_mlx.py").write_text(PEER if installed else MISSING)
    done = subprocess.run(
        [sys.executable, SCRIPT, "--filter", "7x7, 16", "--tiers", "natten_mlx", "--rounds", "1"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ("natten_mlx  " in done.stdout) == installed
    assert ("No module named 'natten_mlx'" in done.stderr) != installed


def test_who_has_no_backward_runs_forward_and_says_so(monkeypatch, capsys, tmp_path):
    def refuse(*arrays):
        raise NotImplementedError("No gradients here. Use another device.")

    ones = [Contestant("gather", max, max, [1, 2]), Contestant("peer", max, refuse, [1, 2])]
    monkeypatch.setattr(benchmark_ops, "contestants", lambda *_: [x.prepare() for x in ones])
    case = benchmark_ops.CASES[0]
    rows = benchmark_ops.measure(case, [], 1, "float32", rounds=2)
    benchmark_ops.show(case, rows, 1, 4)
    benchmark_ops.plot(rows, tmp_path / "ops.png")
    table = capsys.readouterr().out.splitlines()
    assert table[1].count(" ms ") == 2
    assert table[2].count(" ms ") == 1 and table[2].endswith("No gradients here")
    assert rows[1]["forward_ms"] > 0 and "both_ms" not in rows[1]


def test_an_unknown_contestant_is_refused():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiers", "fast"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no fast among fast_metal" in done.stderr

import csv
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.training.runs import TINY

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_loader.py"


def test_rates_of_loader_and_step(tmp_path):
    recipe = {"model_args": TINY, "image_size": 32, "batch_size": 8, "compile": "no"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    table = tmp_path / "loader.csv"
    more = ["--csv", table]
    options = ["--images", "32", "--side", "64", "--steps", "5", "--rounds", "1"]
    command = [sys.executable, SCRIPT, "-c", tmp_path / "tiny.yaml", *options, *more]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "batches of 8, 4 workers, nat_mini" in text
    loader, step, both = map(
        float, re.search(r"loader (\S+)  step (\S+)  both (\S+)", text).groups()
    )
    assert min(loader, step, both) > 0
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["model"], row["loader_per_second"]) == ("nat_mini", f"{loader:.1f}")
    assert row["command"].startswith("python ") and "--csv" in row["command"]
    times = float(re.search(r"gives (\S+) times", text).group(1))
    assert abs(times - loader / step) < 0.1 + 0.01 * times


def test_fewer_images_than_a_batch(tmp_path):
    command = [sys.executable, SCRIPT, "--images", "8", "--side", "32", "--batch-size", "16"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "'batch_size' must be at most the number of training images, 6" in result.stderr

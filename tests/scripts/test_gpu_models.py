"""The benchmark of whole models keeps the figures of who fails or is late."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import gpu_models

FIRST = """print("a library says"); print('{"latency_ms": 5.0}', flush=True); """


@pytest.mark.parametrize(
    "then, error",
    [
        ("import time; time.sleep(60)", "not done after 2 s"),
        ("raise SystemExit('CUDA out of memory')", "CUDA out of memory"),
    ],
)
def test_figures_are_kept_beside_the_error(then, error):
    found = gpu_models.figures([sys.executable, "-c", FIRST + then], 2)
    assert found == {"latency_ms": 5.0, "error": error}


def test_all_figures_and_no_error():
    second = """print('{"images_per_s": 9.0}')"""
    found = gpu_models.figures([sys.executable, "-c", FIRST + second], 60)
    assert found == {"latency_ms": 5.0, "images_per_s": 9.0}

"""The README's code and commands run as they stand, with a cache that holds what they download."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from natten_zoo import create_model
from natten_zoo.data.fashion_mnist import FOLDER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"^    (natten-zoo (?!finetune).*)$", README, re.M)
COMMANDS = list(dict.fromkeys(COMMANDS + re.findall(r"`(natten-zoo .+?)`", README)))
SHORTER = {"natten-zoo doctor": " --rounds 1", "fashion-mnist": " --limit 200"}  # minutes otherwise


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a photo and a checkpoint, and an environment whose Hub cache holds nat_mini."""
    folder = tmp_path_factory.mktemp("desk")
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(folder / "photo.jpg")
    repo = folder / "hub" / "models--shi-labs--nat-mini-in1k-224"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    create_model("nat_mini").save_pretrained(repo / "snapshots" / ("0" * 40))
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    return folder, environment


def run(desk, *command):
    folder, environment = desk
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", CODE)
def test_code(desk, code):
    run(desk, "-c", code)


def test_code_between_words_runs_after_the_code_above_it(desk):
    """Such as `model.features(image)`: with the names of the block before, and nothing else."""
    parts = re.split(r"```python\n(.*?)```", README, flags=re.S)
    lines = [(code, line) for code, text in zip(parts[1::2], parts[2::2], strict=True)
             for line in re.findall(r"`((?:model|ops|layers)\.\w+\(.*?\))`", text)]  # fmt: skip
    assert any("features" in line for _, line in lines)
    for code, line in lines:
        if "set_backend" not in line and "explain" not in line:
            run(desk, "-c", f"{code}\n{line}")


@pytest.mark.parametrize("command", COMMANDS)
def test_command(desk, command):
    if "convert" in command:
        if find_spec("torch") is None:
            pytest.skip("needs torch, to write a checkpoint as upstream publishes them")
        run(desk, "-c", WRITE_WITH_TORCH)  # in a process of its own: others test that none has it
    if "fashion-mnist" in command and not FOLDER.exists():
        pytest.skip("needs Fashion-MNIST: apt install dataset-fashion-mnist")
    command += "".join(option for word, option in SHORTER.items() if word in command)
    assert run(desk, "-m", *shlex.split(command.replace("natten-zoo", "natten_zoo")))


@pytest.mark.slow
def test_doctor_as_it_stands(desk):
    assert "All well." in run(desk, "-m", "natten_zoo", "doctor")


WRITE_WITH_TORCH = """
import numpy as np, torch
from mlx.utils import tree_flatten
from natten_zoo import create_model

weights = tree_flatten(create_model("nat_mini").parameters())
arrays = {name: np.array(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x) for name, x in weights}
torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, "nat_mini.pth")
"""


def test_the_readme_has_its_parts():
    assert len(CODE) >= 2 and len(COMMANDS) >= 2
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), f"README links to {path}"
    for script in re.findall(r"\b((?:scripts|tests|docs|ops|metal|configs)/[\w/]+\.\w+)", README):
        assert (ROOT / script).exists(), f"README names {script}"

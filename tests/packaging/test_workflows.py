"""What GitHub runs: actions by their commits, an end to every job, and targets that make has."""

import re
from pathlib import Path
from unittest import mock

import mlx.core as mx
import pytest
import yaml

from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))


def jobs(path):
    return yaml.safe_load(path.read_text())["jobs"].values()


def steps(path):
    return [step for job in jobs(path) for step in job["steps"]]


def test_the_workflows_are_those_that_are_described():
    assert [path.stem for path in WORKFLOWS] == ["docs", "nightly", "release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_jobs_end(path):
    assert all(job["timeout-minutes"] <= 90 for job in jobs(path))
    for action in (step["uses"] for step in steps(path) if "uses" in step):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_of_make_exist(path):
    commands = "\n".join(step.get("run", "") for step in steps(path))
    named = {t for found in re.findall(r"^make (.+)$", commands, re.M) for t in found.split()}
    assert named <= TARGETS


def test_both_commands_of_the_readme_run_on_linux_of_both_kinds():
    linux = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["linux"]
    assert linux["strategy"]["matrix"]["machine"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert [step["run"] for step in linux["steps"] if "run" in step][-2:] == [
        "make demo",
        "make test",
    ]


def test_a_mac_without_metal_fails(metal):  # noqa: F811
    """What its job asks first is answered by a device with Metal, and by none without."""
    job = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["mac"]
    [asked] = [
        step["run"] for step in job["steps"] if "Metal must be there" in step.get("name", "")
    ]
    question = re.search(r'python -c "(.*)"', asked, re.S)[1]
    with (
        mock.patch.object(mx.metal, "is_available", lambda: True),
        mock.patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)),
    ):
        exec(question)
    with (
        mock.patch.object(mx.metal, "is_available", lambda: False),
        pytest.raises(AssertionError, match="no Metal"),
    ):
        exec(question)

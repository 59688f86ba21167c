"""docs/kernels.md: the tests that it names are there, and its counts are those of the tests."""

import re
from pathlib import Path

from natten_zoo.cli import _expected
from tests.metal_emulator import test_faults, test_mutants, test_strict

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "kernels.md").read_text("utf-8").split())


def numbers(pattern):
    """Those that the page has where the pattern has `#`."""
    [found] = re.findall(re.escape(pattern).replace(r"\#", r"([\d,]+)"), PAGE)
    return [int(n.replace(",", "")) for n in found]


def test_the_tests_that_it_names_are_there():
    files = sorted((ROOT / "tests").rglob("*.py"))
    defined = {name for f in files for name in re.findall(r"^def (test_\w+)", f.read_text(), re.M)}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 5 and named <= defined
    paths = {path.as_posix() for path in files}
    mentioned = re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", PAGE)
    assert len(mentioned) > 10
    assert not [m for m in mentioned if not any(path.endswith(f"/{m}") for path in paths)]


def test_what_is_planted():
    found = numbers(
        "# planted defects in the kernels are all found; "
        "the emulator tells # planted cases apart, the strict check #"
    )
    wanted = (test_mutants.MUTANTS, test_faults.CASES, test_strict.CASES)
    assert found == [len(planted) for planted in wanted]


def test_how_long_doctor_takes_an_m1():
    found = numbers("by the model all of it takes an M1 # seconds at most, # of them for building")
    building = _expected.KERNELS * _expected.BUILD
    assert found == [round(_expected.seconds(rounds=10)), building]

"""Import lines of earlier versions: the same modules, with a word about where they are now."""

import importlib
import subprocess
import sys

import pytest

from natten_zoo._moved import MOVED


@pytest.mark.parametrize(
    ("former", "today"),
    [
        *MOVED.items(),
        *[
            ("natten_zoo.ops.compat.v014", "natten_zoo.compat.v014"),
        ],
    ],
)
def test_a_moved_module_is_found_under_its_former_name(former, today):
    code = f"""
import importlib, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    former = importlib.import_module({former!r})
today = importlib.import_module({today!r})
assert former is today and today.__spec__.name == {today!r} == today.__name__
assert any("{today} now" in str(s.message) for s in said), [str(s.message) for s in said]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("natten_zoo.musical")

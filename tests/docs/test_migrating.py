"""docs/migrating.md: every line of code in its tables' right-hand columns runs."""

import re
from pathlib import Path

import mlx.core as mx
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
SETUP = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
CODE = [re.search(r"`(.+)`", cell) for row in ROWS for cell in row[1:]]
LINES = [found[1] for found in CODE if found and re.match(r"(compat|ops|layers)\.", found[1])]


def test_the_page_has_its_lines():
    assert len(LINES) > 40


@pytest.mark.parametrize("line", LINES)
def test_line(line):
    names = {}
    exec(SETUP, names)
    before = names["ops"].get_backend()
    try:
        result = eval(line, names)
        if isinstance(result, (mx.array, tuple, list)):
            mx.eval(result)
    finally:
        names["ops"].set_backend(before)

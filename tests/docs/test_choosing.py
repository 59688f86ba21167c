"""docs/choosing.md: its code runs and prints the shapes that it says."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text()


def test_code(capsys):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"# (\(.*\))$", code, re.M)

"""docs/naf.md: its code runs, one block after the other, and the shapes that it says are true."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "naf.md").read_text()


def test_code():
    names, checked = {}, 0
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, names)
        for name, shape in re.findall(r"^(\w+) = .*  # \[([\d, ]+)\]$", code, re.M):
            assert names[name].shape == tuple(map(int, shape.split(", "))), name
            checked += 1
    assert checked == 4

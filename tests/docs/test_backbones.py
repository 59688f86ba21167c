"""docs/backbones.md: its code runs, and the shapes and names that it says are true."""

import re
from pathlib import Path

from natten_zoo.configs import load_page

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_code(capsys):
    names = {}
    checked = 0
    for code in BLOCKS:
        exec(code, names)
        for name, comment in re.findall(r"^(?:\w+, )?(\w+) = .*  # (.*)$", code, re.M):
            said = [tuple(map(int, s.split(", "))) for s in re.findall(r"\[([\d, ]+)\]", comment)]
            value = names[name]
            assert said == [y.shape for y in (value if isinstance(value, list) else [value])]
            checked += 1
    assert checked == 5
    out = capsys.readouterr().out
    assert "levels.1 128 8\nlevels.2 256 16\nlevels.3 512 32\n10 512\n(1, 56, 56, 2, 49)" in out


def test_every_name_of_dilations_is_there():
    assert all(f"`{name}`" in PAGE for name in load_page("dilations"))

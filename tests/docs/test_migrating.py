"""docs/migrating.md: every line of code of its tables runs after the first lines of the page.

They run as a reader runs them: the page's first lines, then each line, in an interpreter that has
imported nothing else.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
SETUP = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
CODE = [re.search(r"`(.+)`", cell) for row in ROWS for cell in row[1:]]
LINES = [f[1] for f in CODE if f and re.match(r"(compat|ops|layers|layer)\.", f[1])]


def typed(*lines):
    """What an interpreter prints of lines that are typed into it, and how it ends."""
    text = "".join(f"{line}\n" for line in lines if line.strip())
    # As at a prompt: each line is a statement whose value is shown, so that arrays are computed.
    program = (
        "import sys\nfor line in sys.stdin.read().splitlines():\n"
        "    exec(compile(line, line, 'single'), globals())\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True)


def test_the_page_has_its_lines():
    assert len(LINES) > 50
    assert sum("seq_lens" in line or "lengths" in line for line in LINES) >= 2


def test_every_line_runs_after_the_first_ones():
    done = typed(*SETUP.splitlines(), *LINES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("array(") >= 40


def test_the_two_strides():
    """As the page says of compat.v020: here the output keeps its size, in `ops` it shrinks."""
    lines = [line for line in LINES if line.endswith("na2d(q2, k2, v2, 7, 2)")]
    done = typed(*SETUP.splitlines(), *(f"print(({line}).shape)" for line in lines))
    assert done.stdout.split("\n")[:2] == ["(1, 8, 8, 2, 8)", "(1, 16, 16, 2, 8)"]

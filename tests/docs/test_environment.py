"""docs/environment.md names every environment variable that the code reads."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text()
FOLDERS = ("configs", "metal", "natten_zoo", "notebooks", "ops", "scripts", "tests")

# Of a variable's name the first part; each is a prefix that only environment variables have here.
OWN = r"(?:NATTEN_ZOO|NATTEN_BACKEND|HF|MLX_ENABLE|MLX_METAL|MLX_MAX|WANDB|MALLOC)\w*"
READS = re.compile(
    rf"""(?:environ(?:\.get|\.pop|\.setdefault)?[\[(]\s*|getenv\(\s*|env\.)["']?([A-Z][A-Z0-9_]+)\b"""
    rf"""|["']({OWN})["']"""
)
# What tests set to see that it isn't read, and names that look like variables.
OTHERS = {"PATH", "PYTHONPATH", "HF", "MLX_VERSION"}


def variables():
    """The names that the code reads, and a file that does."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".h", ".ipynb"} and path != Path(__file__):
                for names in READS.findall(path.read_text(encoding="utf-8")):
                    found[names[0] or names[1]] = path
    for names in READS.findall((ROOT / "pyproject.toml").read_text()):
        found[names[0] or names[1]] = ROOT / "pyproject.toml"
    return {name: path for name, path in found.items() if name not in OTHERS}


def test_every_variable_is_in_the_table():
    found = variables()
    assert {"NATTEN_BACKEND", "NATTEN_ZOO_THREADS", "NATTEN_ZOO_NATIVE"} <= found.keys()
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", PAGE))
    missing = {name: str(path) for name, path in found.items() if name not in listed}
    assert not missing


def test_every_variable_of_ours_in_the_table_is_read():
    listed = set(re.findall(r"^\| `(NATTEN_\w+)`", PAGE, re.M))
    assert listed and listed <= variables().keys()

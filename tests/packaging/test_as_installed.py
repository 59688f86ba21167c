"""scripts/as_installed.py: the links by which editors and mypy find natten_zoo.ops and its kin."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("ops", "metal", "configs")


@pytest.fixture
def clone(tmp_path):
    """The sources of a clone, with the links that `make editor` makes."""
    for name in ("natten_zoo", *BESIDE):
        for path in (ROOT / name).rglob("*.py"):
            inside = path.relative_to(ROOT)
            if inside.parts[:2] not in {("natten_zoo", n) for n in BESIDE}:
                (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / inside).write_text(path.read_text())
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "as_installed.py"
    script.write_text((ROOT / "scripts" / "as_installed.py").read_text())
    (tmp_path / "pyproject.toml").touch()
    for _ in range(2):  # a second time changes nothing
        subprocess.run([sys.executable, script], check=True)
    return tmp_path


def relative_imports(path: Path):
    """Where an editor looks for what a file imports relative to itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield path.parents[node.level - 1].joinpath(*node.module.split("."))


def test_relative_imports_lie_where_editors_look(clone):
    targets = {t for p in (clone / "natten_zoo").rglob("*.py") for t in relative_imports(p)}
    assert any(target.is_relative_to(clone / "natten_zoo" / "ops") for target in targets)
    assert not [t for t in targets if not (t.is_dir() or t.with_suffix(".py").is_file())]


def test_the_package_imports_with_the_links(clone):
    code = "from natten_zoo import ops, layers, create_model; print(ops.__file__)"
    # Without the site module no editable installation of this project gets in first.
    paths = [str(clone), *(path for path in sys.path if "packages" in path)]
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=clone,
        env={"PYTHONPATH": os.pathsep.join(paths), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).samefile(clone / "ops" / "__init__.py")


def test_git_ignores_the_links():
    links = [f"natten_zoo/{name}" for name in BESIDE]
    found = subprocess.run(
        ["git", "check-ignore", *links], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.split() == links

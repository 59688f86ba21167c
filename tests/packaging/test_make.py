"""What `make` says first: of an old Python, of a `.venv` that one left, of machines without MLX."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_python.py"
spec = importlib.util.spec_from_file_location("check_python", SCRIPT)
check_python = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_python)
NOW = tuple(sys.version_info[:2])


@pytest.fixture
def clone(tmp_path):
    """A Makefile and what it asks."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def old_python(path, version="3.9"):
    """Something that says it were a Python of that version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)


def make(clone, *arguments):
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_venv_of_an_old_python_is_made_again(clone):
    old_python(clone / ".venv" / "bin" / "python")
    (clone / ".venv" / ".demo").touch()
    done = make(clone, "demo", f"PYTHON={sys.executable}")
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert f".venv is of Python 3.9 and is made again with {sys.executable}" in done.stderr
    assert not (clone / ".venv").exists()
    assert f"{sys.executable} -m venv .venv" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_python_that_does_not_run(clone):
    done = make(clone, "demo", "PYTHON=/nowhere/python")
    assert done.returncode == 2 and "/nowhere/python does not run" in done.stderr
    assert make(clone, "clean", "PYTHON=/nowhere/python").returncode == 0


def test_an_old_python_is_told_in_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    check_python.main(True, str(tmp_path / ".venv"))
    answer = capsys.readouterr().out
    assert answer.startswith("natten_zoo needs Python 3.10 or newer but ") and "is 3.9:" in answer
    assert answer.count("\n") == 1 and "PYTHON=python3.13" in answer


def test_where_none_was_chosen_a_newer_one_is_taken(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    old_python(tmp_path / "python3.12", "3.12")
    old_python(tmp_path / "python3.13", "3.9")  # whatever it is called
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    check_python.main(False, str(tmp_path / ".venv"))
    assert capsys.readouterr().out == f"use {tmp_path}/python3.12\n"


def test_a_venv_that_works_stays(capsys, tmp_path):
    old_python(tmp_path / ".venv" / "bin" / "python", "3.12")
    for chosen in {False, NOW == (3, 12)}:
        check_python.main(chosen, str(tmp_path / ".venv"))
        assert capsys.readouterr().out == f"use {tmp_path}/.venv/bin/python\n"
    if NOW != (3, 12):
        check_python.main(True, str(tmp_path / ".venv"))
        assert capsys.readouterr().out == f"use {sys.executable}\n"
        assert not (tmp_path / ".venv").exists()


def test_python_without_mlx_data_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    check_python.main(True, str(tmp_path / ".venv"))
    out, err = capsys.readouterr()
    assert out == f"use {sys.executable}\n" and "Python 3.14 has no mlx-data" in err


# What came to GNU make after 3.81, which is macOS's.
NEWER = r"\$\((?:file|guile|let|intcmp) |::?:=|!=|^(?:\.ONESHELL|undefine|private|define \w+ =)|&:"


def test_the_makefile_is_one_for_macos():
    """Nothing that its make does not know, no tool of GNU's alone, and no apt."""
    text = (ROOT / "Makefile").read_text()
    assert re.findall(NEWER, text, re.MULTILINE) == []
    assert re.search(NEWER, "X != ls", re.MULTILINE) and re.search(NEWER, "a b &: c")
    for tool in ("apt", "dpkg", "nproc", "readlink -f", "sed -i", "grep -P", "cp --", "xargs -r"):
        assert tool not in text, tool
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if re.match(r"\s*(apt-get|dpkg) ", line):
            assert line.startswith("  "), f"not within `if command -v apt-get`: {line}"


def test_no_two_files_differ_in_case_alone():
    """On macOS's file system they would be one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    seen = {}
    for path in map(PurePosixPath, filter(None, listed.stdout.split("\0"))):
        for part in (path, *path.parents):
            assert seen.setdefault(str(part).lower(), part) == part


def test_machines_without_mlx():
    version = (3, 12)
    assert check_python.complaint(version, "Darwin", "14.5", "arm64") is None
    assert check_python.complaint(version, "Linux", "", "x86_64") is None
    assert "need macOS 14 or newer and this is 13.6" in check_python.complaint(
        version, "Darwin", "13.6", "arm64"
    )
    assert "Apple silicon" in check_python.complaint(version, "Darwin", "14.5", "x86_64")

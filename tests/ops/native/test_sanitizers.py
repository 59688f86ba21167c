"""The tier's core without Python and MLX, under the address, undefined and thread sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "ops" / "native"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def build(folder: Path, *flags: str) -> Path:
    """Compiles the driver."""
    assert COMPILER
    sources = [SOURCE / "driver.cpp", *sorted((SOURCE / "core").glob("*.cpp"))]
    common = ["-std=c++20", "-O1", "-g", "-Wno-psabi", *flags]
    include = [f"-I{SOURCE / 'core'}", f"-I{SOURCE.parents[1] / 'metal'}"]
    program = folder / "driver"
    subprocess.run(
        [COMPILER, *common, *include, *map(str, sources), "-pthread", "-o", str(program)],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return program


def run(program: Path, problems: int, **env: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # sanitizers come first
    done = subprocess.run(
        [program, str(problems)],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout == f"{problems} problems, no error\n"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("march", ("native", ""))
def test_address_and_undefined(tmp_path: Path, march: str) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = build(tmp_path, *flags, *([f"-march={march}"] if march else []))
    run(program, 150, NATTEN_ZOO_THREADS="2")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_threads(tmp_path: Path) -> None:
    run(build(tmp_path, "-fsanitize=thread"), 100, NATTEN_ZOO_THREADS="4")

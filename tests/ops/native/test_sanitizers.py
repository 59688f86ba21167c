"""The tier's core without Python and MLX: sanitizers, arm64, the library of macOS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "ops" / "native"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def build(folder: Path, *flags: str, compiler: str | None = COMPILER) -> Path:
    """Compiles the driver."""
    assert compiler
    sources = [SOURCE / "driver.cpp", *sorted((SOURCE / "core").glob("*.cpp"))]
    common = ["-std=c++20", "-O1", "-g", "-Wno-psabi", *flags]
    include = [f"-I{SOURCE / 'core'}", f"-I{SOURCE.parents[1] / 'metal'}"]
    program = folder / "driver"
    subprocess.run(
        [compiler, *common, *include, *map(str, sources), "-pthread", "-o", str(program)],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return program


def run(program: Path, problems: int, *emulator: str, **env: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # sanitizers come first
    done = subprocess.run(
        [*emulator, program, str(problems)],
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
@pytest.mark.slow
def test_threads(tmp_path: Path) -> None:
    run(build(tmp_path, "-fsanitize=thread"), 100, NATTEN_ZOO_THREADS="4")


ARM = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")


@pytest.mark.skipif(None in ARM, reason="apt: g++-aarch64-linux-gnu and qemu-user-static")
@pytest.mark.slow
def test_on_arm64(tmp_path: Path) -> None:
    """The vectors that a Mac's CPU has, in an emulator."""
    compiler, emulator = map(str, ARM)
    program = build(tmp_path, "-static", "-Wall", "-Wextra", "-Werror", compiler=compiler)
    run(program, 60, emulator)


def clang_with_libcxx() -> str | None:
    """A clang++ that has libc++, as Apple's; Debian: clang-22, libc++-22-dev, libc++abi-22-dev."""
    for name in ("clang++", *(f"clang++-{n}" for n in range(30, 14, -1))):
        if found := shutil.which(name):
            check = [found, "-stdlib=libc++", "-x", "c++", "-fsyntax-only", "-"]
            if not subprocess.run(
                check, input=b"#include <version>", capture_output=True
            ).returncode:
                return found
    return None


CLANG = clang_with_libcxx()


@pytest.mark.skipif(CLANG is None, reason="no clang++ with libc++ (apt: libc++-22-dev)")
@pytest.mark.slow
def test_with_libcxx(tmp_path: Path) -> None:
    """Compiles without a warning, and is right."""
    flags = ["-stdlib=libc++", "-Wall", "-Wextra", "-Werror", "-march=native"]
    run(build(tmp_path, *flags, compiler=CLANG), 150)


@pytest.mark.skipif(CLANG is None, reason="no clang++ with libc++ (apt: libc++-22-dev)")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu", "module", "norm", "operations", "primitives", "program"])
def test_the_bindings_with_libcxx(name: str) -> None:
    """Compiled alone: MLX's wheel for Linux is of another library, with which it would not link."""
    nanobind, mlx = (pytest.importorskip(module) for module in ("nanobind", "mlx.core"))
    outer = [nanobind.include_dir(), Path(mlx.__file__).parent / "include"]
    outer.append(sysconfig.get_path("include"))
    include = [f"-I{SOURCE / 'core'}", f"-I{SOURCE.parents[1] / 'metal'}"]
    include += [f"-isystem{folder}" for folder in outer]
    flags = ["-stdlib=libc++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi"]
    defined = ["-DNB_DOMAIN=mlx", '-DMLX_NATTEN_VERSION="0"', '-DNATTEN_ZOO_FACE="0"']
    done = subprocess.run(
        [str(CLANG), *flags, *defined, *include, str(SOURCE / f"{name}.cpp")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]

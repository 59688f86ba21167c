"""Runs tests as an arm64 machine would, in an emulator of its instructions.

    python scripts/on_arm64.py tests/ops/native/test_native.py -k attention

Debian's Python for arm64, MLX's wheel for it, and the compiled tier, compiled here for it. The
first two are fetched into `--folder` where they are missing, which takes the network, root, and
from Debian debootstrap, qemu-user-static and g++-aarch64-linux-gnu. Options that this script
doesn't know are pytest's. There is no C++ compiler for arm64 in there, which `mx.compile` wants
on a CPU, and how fast anything is tells nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "ops" / "native"
PROGRAMS = ("debootstrap", "dpkg", "qemu-aarch64-static", "aarch64-linux-gnu-g++")
SUITE, PYTHON = "bookworm", "3.11"
DEBIAN = "python3,libstdc++6,libgomp1,libopenblas0-pthread"
WHEELS = ("mlx", "mlx-cpu", "numpy", "pytest", "pluggy", "iniconfig", "packaging", "pygments")
PLATFORMS = [f"manylinux_2_{n}_aarch64" for n in (35, 31, 28, 27, 17)]
FOLDERS = ("ops", "metal", "configs", "natten_zoo", "tests")


def missing() -> str | None:
    """What it takes and is not here."""
    lack = [name for name in PROGRAMS if shutil.which(name) is None]
    if lack:
        return f"not installed: {', '.join(lack)}"
    if "{}.{}".format(*sys.version_info) != PYTHON:
        return f"the headers of Python {PYTHON}, which Debian {SUITE} has"
    return None if os.getuid() == 0 else "debootstrap wants to be root"


def system(folder: Path) -> Path:
    """Debian's Python and the libraries that it needs, unpacked and not set up."""
    root = folder / "system"
    if not (root / "complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        options = ["--foreign", "--arch=arm64", "--variant=minbase", f"--include={DEBIAN}"]
        subprocess.run(["debootstrap", *options, SUITE, str(root)], check=True, stdout=sys.stderr)
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
            package.unlink()
        (root / "complete").touch()
    return root


def packages(folder: Path) -> Path:
    """The wheels for arm64 of what is installed here."""
    site = folder / "packages"
    if not (site / "complete").exists():
        shutil.rmtree(site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
        command += ["--only-binary", ":all:", "--python-version", PYTHON]
        command += [option for name in PLATFORMS for option in ("--platform", name)]
        command += [f"{name}=={version(name)}" for name in WHEELS]
        subprocess.run(command, check=True)
        (site / "complete").touch()
    return site


def extension(folder: Path, site: Path) -> Path:
    """The compiled tier, by the same rules as for this machine."""
    build = folder / "extension"
    cmake, ninja = program("cmake"), program("ninja")
    configure = [
        *(cmake, "-S", str(SOURCE), "-B", str(build), "-G", "Ninja"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_MODULE_LINKER_FLAGS=-Wl,--allow-shlib-undefined",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DNATTEN_ZOO_MARCH=",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",  # of the same version
        f"-Dmlx_library={site / 'mlx' / 'lib' / 'libmlx.so'}",
    ]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    subprocess.run([cmake, "--build", str(build)], check=True, stdout=sys.stderr)
    return next(build.glob("_ext.*.so"))


def program(name: str) -> str:
    """A program of this Python's environment, else of the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def tree(folder: Path, built: Path) -> Path:
    """A copy of this one with that extension."""
    copy = folder / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    shutil.copy2(ROOT / "pyproject.toml", copy)
    suffix = f"cpython-{PYTHON.replace('.', '')}-aarch64-linux-gnu.so"
    shutil.copy2(built, copy / "ops" / "native" / f"_ext.{suffix}")
    return copy


def main() -> int:
    """Runs pytest; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "arm64")
    args, of_pytest = parser.parse_known_args()
    if lack := missing():
        raise SystemExit(lack)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    root, site = system(folder), packages(folder)
    copy = tree(folder, extension(folder, site))
    command = ["qemu-aarch64-static", "-L", str(root), "-E", f"PYTHONPATH={site}:{copy}"]
    command += [str(root / "usr" / "bin" / f"python{PYTHON}"), "-m", "pytest", "-o", "addopts="]
    command += ["-q", "-p", "no:cacheprovider", *of_pytest]
    return subprocess.run(command, cwd=copy, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

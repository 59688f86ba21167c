"""Compiles the native tier of a clone, in place: `python scripts/build_native.py`.

Needs a C++20 compiler (GCC 12 or newer, Clang 15 or newer), `cmake`, `ninja` and the release of
`nanobind` that MLX was built with; `pip install 'natten-zoo[native]'` has the last three.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "ops" / "native"


def missing() -> str | None:
    """What the build lacks here; None if nothing."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "a C++20 compiler"
    for program in ("cmake", "ninja"):
        if _program(program) is None:
            return program
    return None if importlib.util.find_spec("nanobind") else "nanobind"


def build(march: str, sanitize: str, build_dir: Path, target: Path) -> None:
    """Configures and compiles; the extension lands in `target`."""
    cmake, ninja = _program("cmake") or "cmake", _program("ninja") or "ninja"
    built = build_dir / "extension"
    configure = [
        *(cmake, "-S", str(SOURCE), "-B", str(build_dir), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={built}",
        f"-DNATTEN_ZOO_MARCH={march}",
        f"-DNATTEN_ZOO_SANITIZE={sanitize}",
    ]
    subprocess.run(configure, check=True)
    subprocess.run([cmake, "--build", str(build_dir)], check=True)
    for extension in built.glob("_ext.*"):
        # A program that runs keeps the file it has loaded; written over, it would crash.
        part = target / f"{extension.name}.part"
        shutil.copy2(extension, part)
        part.replace(target / extension.name)


def _program(name: str) -> str | None:
    """A program of this Python's environment, else of the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--march", default="native", help="value of -march, empty for none")
    parser.add_argument("--sanitize", default="", help="address,undefined or thread")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build" / "native")
    parser.add_argument("--target", type=Path, default=SOURCE, help="where the extension goes")
    parser.add_argument(
        "--if-possible", action="store_true", help="succeed without a build where tools are missing"
    )
    args = parser.parse_args()
    if lack := missing():
        print(f"The native tier is not compiled: {lack} is missing.", file=sys.stderr)
        return 0 if args.if_possible else 1
    build(args.march, args.sanitize, args.build_dir.resolve(), args.target.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())

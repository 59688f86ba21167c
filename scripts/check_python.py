"""What `make` asks before all else: is this Python new enough, and is .venv of one that is?

Prints "use PYTHON" with the Python to make .venv of, or in one sentence what is wrong. Runs on old
releases of Python, for it is they that must be told.
"""

import os
import platform
import re
import shutil
import subprocess
import sys

OLDEST = (3, 10)
# Without wheels of mlx-data, which reads image files while training.
WITHOUT_LOADER = (3, 14)
OLDEST_MACOS = 14
ANSWER = "import sys; print('%d.%d' % sys.version_info[:2])"


def dotted(version):
    """A version as people write it."""
    return ".".join(map(str, version))


def version_of(python):
    """Major and minor number of a Python that can be started, else None."""
    try:
        done = subprocess.run(
            [python, "-c", ANSWER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"(\d+)\.(\d+)", done.stdout.decode()) if done.returncode == 0 else None
    return (int(found.group(1)), int(found.group(2))) if found else None


def newer():
    """A Python of the PATH that is new enough, those first that have all wheels."""
    minors = [*range(WITHOUT_LOADER[1] - 1, OLDEST[1] - 1, -1), *range(WITHOUT_LOADER[1], 20)]
    for minor in minors:
        path = shutil.which(f"python3.{minor}")
        if path and version_of(path) == (3, minor):
            return path
    return None


def complaint(version, system, release, machine):
    """What is wrong with a Python and its machine, in a sentence; None if nothing is."""
    if version < OLDEST:
        return (
            f"natten_zoo needs Python {dotted(OLDEST)} or newer but {sys.executable} is "
            f"{dotted(version)}: install one (python.org, or brew install python@3.13) and run "
            "make again with PYTHON=python3.13"
        )
    if system == "Darwin" and machine != "arm64":
        return f"MLX runs on Apple silicon, and this Python is built for {machine}"
    if system == "Darwin" and int(release.split(".")[0] or 0) < OLDEST_MACOS:
        return f"MLX's wheels need macOS {OLDEST_MACOS} or newer and this is {release}"
    return None


def main(chosen, venv):
    """Print the answer; a .venv of another Python is removed, for pip could not heal it."""
    python, version = sys.executable, tuple(sys.version_info[:2])
    inside = os.path.join(venv, "bin", "python")
    kept = version_of(inside) if os.path.lexists(inside) else None
    if kept and kept >= OLDEST and (kept == version or not chosen):
        print("use " + inside)
        return
    if version < OLDEST and not chosen:
        python = newer() or python
        version = version_of(python) or version
    wrong = complaint(version, platform.system(), platform.mac_ver()[0], platform.machine())
    if wrong:
        print(wrong)
        return
    if os.path.isdir(venv):
        was = f"Python {dotted(kept)}" if kept else "a Python that is gone"
        print(f"{venv} is of {was} and is made again with {python}", file=sys.stderr)
        shutil.rmtree(venv)
    if version >= WITHOUT_LOADER:
        print(
            f"Python {dotted(version)} has no mlx-data, which training on image files needs; all "
            "else works (with PYTHON=python3.13 that, too)",
            file=sys.stderr,
        )
    print("use " + python)


if __name__ == "__main__":
    main("--chosen" in sys.argv, ".venv")

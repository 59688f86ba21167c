"""Writing a folder so that it is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .readers.reader import CONFIG, PREPROCESSOR, WEIGHTS

README = "README.md"
OURS = {CONFIG, PREPROCESSOR, WEIGHTS, README}


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a place where something is that must not be lost.

    Raises:
        FileExistsError: There is a file or a folder that is not empty, and `overwrite` is not
            set; or the folder has files that no model folder has, or is the current one or around
            it: it would be replaced below the feet of whoever works in it.
    """
    if Path.cwd().is_relative_to(target.resolve()):
        raise FileExistsError(f"{target}: is the current folder or around it; name a new one")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{target}: is no folder, and is not overwritten")
    found = sorted(path.name for path in target.iterdir()) if target.exists() else []
    if found and not overwrite:
        raise FileExistsError(f"{target}: exists and is not empty; choose to overwrite it")
    if others := [name for name in found if name not in OURS]:
        listed = ", ".join(others[:5])
        raise FileExistsError(f"{target}: is not overwritten, it has other files too: {listed}")


def write_folder(target: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Let `fill` write a folder at `target`, unless something is there that must not be lost.

    Raises:
        FileExistsError: As `check_target` does.
    """
    check_target(target, overwrite)
    replace_folder(target, fill)


def replace_folder(target: Path, fill: Callable[[Path], None], keep: Path | None = None) -> None:
    """Let `fill` write a folder beside `target`, then rename it; what was there moves to `keep`.

    A process that is killed leaves at most a hidden `.<name>.partial`, which the next one takes
    away, and, between the two renames, the old folder as `keep` or else as `.<name>.old`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    old = keep or target.with_name(f".{target.name}.old")
    _remove(partial)
    partial.mkdir()
    try:
        fill(partial)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if target.exists():
            _remove(old)
            target.rename(old)
        partial.rename(target)
        _sync(target.parent)
    finally:
        _remove(partial)
    if old != keep:
        _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Have the disk hold a file or folder before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

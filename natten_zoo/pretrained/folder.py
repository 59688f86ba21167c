"""Writing a folder so that it is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..files import SUMS, remove, write_sums
from .readers.digests import whole
from .readers.reader import CONFIG, PREPROCESSOR, WEIGHTS

README = "README.md"
OURS = {CONFIG, PREPROCESSOR, WEIGHTS, README, SUMS}


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

    The new folder also gets the digests of its files. Nothing is removed before the new folder is
    in its place: a process that is killed leaves at most a hidden `.<name>.partial`, which is whole
    if it has digests, and what was there, as `keep` or `.<name>.old`. `settle` tidies up.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target).partial
    remove(partial)
    partial.mkdir()
    try:
        fill(partial)
        write_sums(partial)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        put_in_place(partial, target, keep)
    except BaseException:
        remove(partial)
        raise


def put_in_place(new: Path, target: Path, keep: Path | None = None) -> None:
    """Rename `new` to `target`; what was there moves to `keep`, what was at `keep` goes at last."""
    before = _beside(keep or target).old
    if exists(target):
        remove(before)
        if keep and exists(keep):
            keep.rename(before)
        target.rename(keep or before)
    new.rename(target)
    _sync(target.parent)
    remove(before)


def settle(target: Path) -> None:
    """Finish what a kill interrupted in `replace_folder`, once no other process is in it.

    Where `target` is missing, the new folder takes its place if it was complete, else the old one.
    """
    partial, old = _beside(target)
    if not exists(target):
        if whole(partial):
            partial.rename(target)
        elif exists(old):
            old.rename(target)
    remove(partial)
    remove(old)


def exists(path: Path) -> bool:
    """Whether anything is there, a broken link included."""
    return path.exists() or path.is_symlink()


class Beside(NamedTuple):
    """Where a folder is while it is replaced: the new one, and the one that was there."""

    partial: Path
    old: Path


def _beside(target: Path) -> Beside:
    return Beside(*(target.with_name(f".{target.name}.{end}") for end in Beside._fields))


def _sync(path: Path) -> None:
    """Have the disk hold a file or folder before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

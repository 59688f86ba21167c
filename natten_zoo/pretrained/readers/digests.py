"""Folders hold the digests of their files: a flipped bit is found before it is learned from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...files import SUMS, read_sums, sha256_of
from .errors import CheckpointError


def changed(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are others than its digests say; none where it has none.

    Raises:
        CheckpointError: A file that has a digest is missing.
    """
    sums, found = read_sums(folder), []
    for name in names:
        if name not in sums:
            continue
        if not (folder / name).is_file():
            raise CheckpointError(folder, f"{name} is missing, which {SUMS} lists")
        if sha256_of(folder / name) != sums[name]:
            found.append(name)
    return found


def check_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Hold files against their digests: those of `names`, by default all that have one.

    Raises:
        CheckpointError: One is missing or another than the one that was written.
    """
    for name in changed(folder, read_sums(folder) if names is None else names):
        raise CheckpointError(
            folder / name,
            f"it is damaged: its digest is another than {SUMS} says (if you changed it, remove its "
            "line there)",
        )


def whole(folder: Path, *names: str) -> bool:
    """Whether a folder has digests, those of `names` among them, and files that agree with them."""
    try:
        check_sums(folder)
    except (CheckpointError, OSError):
        return False
    sums = read_sums(folder)
    return bool(sums) and sums.keys() >= set(names)

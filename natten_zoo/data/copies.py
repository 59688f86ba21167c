"""Files that are the same: under two names, through links, or byte by byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from hashlib import sha256
from pathlib import Path

# What is read of files of the same size before they are read as a whole.
_SAMPLE = 4096


def identity(file: Path) -> Hashable:
    """The same for two paths that lead to one file, also through links."""
    try:
        state = file.stat()
    except OSError:
        return str(file.absolute())
    return state.st_dev, state.st_ino


def first_copies(files: Sequence[Path]) -> list[int]:
    """For each file the place of the first with the same bytes; its own, if there is none before.

    Only files of the same size are read, and as a whole only those that agree in a sample. A file
    that cannot be read is like no other.
    """
    keys: list[tuple[Hashable, ...]] = [()] * len(files)
    for look in (_size, _sample, _digest):
        counts = Counter(keys)
        keys = [
            _refined(key, look, file, place) if counts[key] > 1 else key
            for place, (key, file) in enumerate(zip(keys, files, strict=True))
        ]
    first: dict[tuple[Hashable, ...], int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]


def _refined(key: tuple, look: object, file: Path, place: int) -> tuple[Hashable, ...]:
    try:
        return (*key, look(file))  # type: ignore[operator]
    except OSError:
        return (*key, "unreadable", place)


def _size(file: Path) -> int:
    return file.stat().st_size


def _sample(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size // 2 - _SAMPLE // 2))
        return sha256(stream.read(_SAMPLE)).digest()


def _digest(file: Path) -> bytes:
    return sha256(file.read_bytes()).digest()

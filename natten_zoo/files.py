"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> Path:
    """Write a file beside its place and rename it there; makes its folder.

    Args:
        path: The file; one that was there stays as it is until the new one is complete.
        fill: Writes the content to the open file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            fill(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path

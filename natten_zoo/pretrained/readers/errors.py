"""The one error that a bad checkpoint raises."""

from __future__ import annotations

from os import PathLike


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: its message names the file and the reason.

    Args:
        path: The file or folder.
        reason: What is wrong with it, and what to do where something can be done.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

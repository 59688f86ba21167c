"""Saying aloud what was made of data that could have been meant otherwise."""

from __future__ import annotations

import warnings


class DataWarning(UserWarning):
    """Data was read in a way that its owner may not expect; the message says how."""


def warn(text: str) -> None:
    """Issue a [`DataWarning`][]; the command line prints it as a line."""
    warnings.warn(text, DataWarning, stacklevel=3)


def listed(names: list[str], most: int = 5) -> str:
    """Some names for a message, and how many more there are.

    Examples:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

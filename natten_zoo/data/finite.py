"""Refusing numbers that are none: they would become an answer."""

from __future__ import annotations

import numpy as np


def check_finite(op: str, name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity, and say where the first is.

    Args:
        op: Who asks, for the message.
        name: What the values are called there.
        values: Of any shape and type; integers are always finite.

    Raises:
        ValueError: There is such a value.

    Examples:
        >>> check_finite("analyze", "spectrograms", np.array([[0.0, np.inf]]))
        Traceback (most recent call last):
        ValueError: [analyze] 'spectrograms' must be finite but has inf at (0, 1), the first of 1.
    """
    if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
        return
    wrong = ~np.isfinite(values)
    if count := int(wrong.sum()):
        first = tuple(np.argwhere(wrong)[0].tolist())
        raise ValueError(
            f"[{op}] '{name}' must be finite but has {values[first]} at {first}, the first of "
            f"{count:,}."
        )

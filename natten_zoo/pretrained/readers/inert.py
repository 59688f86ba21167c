"""What a pickle builds in place of what it asks for: names and objects that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# About what Python takes for a pair in a dict.
PAIR = 128
# Hashes of smaller integers are all different. Larger ones can be made to collide, and n keys that
# do take n^2 steps.
MAX_KEY_BITS = 60
# Python hashes a tuple in a tuple by recursion, without a limit of its own.
MAX_KEY_DEPTH = 100


class PickleError(ValueError):
    """A pickle that is damaged, or that asks for what a checkpoint has no need of."""


class RefusedError(ValueError):
    """What a known function raises of arguments that it makes nothing of, with the reason."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A name that the pickle refers to, with the function that stands for it, if any."""

    name: str
    build: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Foreign:
    """What an unknown name would have built, or a known one refused to: good for nothing.

    Attributes:
        name: The class or function.
        reason: What a known one found wrong with its arguments.
    """

    name: str
    reason: str = ""


def hashable(item: Any) -> Any:
    """What stands for a key or for an element of a set.

    Names, small numbers and inert objects, whose hash is their identity, stand for themselves. For
    tuples and large integers, whose hashes a file can choose, an inert object does.

    Raises:
        TypeError: Python has no such keys, or could not hash this one for its depth.
    """
    if isinstance(item, (list, dict, set, bytearray)):
        raise TypeError(f"a key of type {type(item).__name__}")
    if isinstance(item, (tuple, frozenset)):
        deep = item
        for _ in range(MAX_KEY_DEPTH):
            if not isinstance(deep, tuple) or not deep:
                return Foreign(f"builtins.{type(item).__name__}")
            deep = deep[0]
        raise TypeError("a key that is nested too deeply")
    if isinstance(item, int) and item.bit_length() > MAX_KEY_BITS:
        return Foreign("builtins.int")
    return item


def cost(argument: Any) -> int:
    """Bytes that a function may make of one of its arguments, which a memo gives it for nothing."""
    if isinstance(argument, (str, bytes, bytearray)):
        return len(argument)
    return PAIR * len(argument) if isinstance(argument, (list, tuple, dict)) else 0

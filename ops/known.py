"""Calls like earlier ones: what was found out about one is looked up.

To validate a call and to choose its tier takes longer than all the rest of it, and a model repeats
its calls. Neither depends on the numbers in the arrays. So an operator notes a function, what is
left to do with arrays of such shapes and dtypes, and looks it up before anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from .backend import circumstances, is_explaining
from .neighborhood import Neighborhood

KEPT = 1024
Rest = TypeVar("Rest", bound=Callable[..., Any])
_known: dict[Hashable, Any] = {}


def kind(
    operator: str, options: Hashable, hood: Neighborhood, scale: Any, *arrays: Any
) -> Hashable:
    """What tells calls apart; None where something is no array, which the operator will say."""
    try:
        looks = tuple([None if x is None else (x.shape, x.dtype) for x in arrays])
    except AttributeError:
        return None
    return operator, options, hood, type(scale), scale, looks, circumstances()


def rest(call: Hashable) -> Any:
    """What is left to do in a call of a kind; None where it is new, or is to be explained."""
    try:
        return None if is_explaining() else _known.get(call)
    except TypeError:  # no number, or no neighborhood: it cannot be hashed
        return None


def keep(call: Hashable, rest: Rest) -> Rest:
    """Notes, and returns, what is left to do in calls of a kind that were found to be right."""
    if len(_known) >= KEPT:
        _known.clear()
    if call is not None:
        _known[call] = rest
    return rest

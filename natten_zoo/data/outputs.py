"""Which output of a classifier each class of a data set is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .labels import imagenet_classes
from .names import find, is_number, plain
from .warning import listed, warn

_SYNSET = re.compile(r"\s*(n\d{8})(?!\d)", re.ASCII)


def outputs(
    found: Sequence[str],
    names: Sequence[str] | None,
    count: int,
    *,
    by_order: bool = False,
    place: str = "the data",
) -> list[int]:
    """Which output of a classifier each class of a data set is.

    Classes that are called like the model's decide; else ImageNet's synsets (`n01440764`, also
    with more behind it), if the model has 1,000 outputs; else numbers, which are outputs. A part
    of the classes is enough. Where the names of outputs are not known and nothing else tells, the
    order decides if the numbers agree, and a warning says so.

    Args:
        found: The data's classes, in order.
        names: The model's, in the order of its outputs, if known.
        count: How many outputs it has.
        by_order: The data's classes are the outputs in their order, whatever they are called.
        place: Where they were found, for messages.

    Raises:
        ValueError: The names say nothing, or only those of some classes do.
    """
    if by_order:
        if len(found) != count:
            raise ValueError(
                f"[outputs] {place} must have {count} classes, one for each output in order, but "
                f"has {len(found)}."
            )
        return list(range(count))
    best: list[int | None] = [None] * len(found)
    for places in _attempts(found, names, count):
        if None not in places:
            return _each_once(found, [at for at in places if at is not None], names, place)
        best = max(best, places, key=lambda places: len(places) - places.count(None))
    if names is None and len(found) == count and not any(map(is_number, found)):
        warn(f"the model does not name its outputs; the folders of {place} count in sorted order")
        return list(range(count))
    raise ValueError(_mismatch(found, best, names, count, place))


def _attempts(
    found: Sequence[str], names: Sequence[str] | None, count: int
) -> list[list[int | None]]:
    attempts = [find(found, names or ())]
    synsets = {synset: at for at, synset in enumerate(imagenet_classes()[0])}
    if count == len(synsets):
        matches = [_SYNSET.match(name) for name in found]
        attempts.append([synsets.get(match[1]) if match else None for match in matches])
    if all(map(is_number, found)):
        numbers = [int(plain(name)) for name in found]
        attempts.append([number if number < count else None for number in numbers])
    return attempts


def _each_once(
    found: Sequence[str], places: list[int], names: Sequence[str] | None, place: str
) -> list[int]:
    """Refuse two classes that would be one output; say where a name was read loosely."""
    by_place: dict[int, list[str]] = {}
    for name, at in zip(found, places, strict=True):
        by_place.setdefault(at, []).append(name)
    if twice := [" and ".join(map(repr, group)) for group in by_place.values() if len(group) > 1]:
        raise ValueError(f"[outputs] {place} has several folders of one class: {listed(twice)}.")
    known = {plain(name) for name in names or ()}
    if known.isdisjoint(map(plain, found)) and all(map(is_number, found)):
        warn(f"the folders of {place} are numbers and were taken for the outputs' numbers")
    return places


def _mismatch(
    found: Sequence[str],
    places: Sequence[int | None],
    names: Sequence[str] | None,
    count: int,
    place: str,
) -> str:
    unknown = [repr(name) for name, at in zip(found, places, strict=True) if at is None]
    theirs = listed(list(map(repr, names or ()))) or "which it does not name"
    some = "others" if len(unknown) < len(found) else "all of them"
    text = (
        f"[outputs] {place} must have folders named like classes of the model, its outputs' "
        f"numbers or ImageNet's synsets, but {some} are not: of {len(found)} folders "
        f"{listed(unknown)}; the model has {count} classes: {theirs}."
    )
    if len(found) == count:
        text += " If the folders in sorted order are the outputs in theirs, choose 'by_order'."
    return text

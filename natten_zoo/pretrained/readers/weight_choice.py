"""Which of the sets of weights in a file are taken: the averaged ones, those asked for, or none.

Weights of no known model keep their names but for wrappers that all of them have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

from .errors import CheckpointError
from .weight_sets import (
    AVERAGED,
    EMA_PARTS,
    MAX_DEPTH,
    OPTIMIZER,
    RAW_PARTS,
    WRAPPERS,
    Entry,
    NoWeightsError,
    WeightSet,
    entries_of,
    known_sets,
    without_wrappers,
)


def find_weights(
    path: str | PathLike[str],
    root: Any,
    is_weight: Callable[[Any], bool],
    nbytes: int,
    *,
    ema: bool = True,
    weights: str | None = None,
    skip: Sequence[str] = (),
) -> WeightSet:
    """Find the weights in what a file holds.

    Args:
        path: The file, for messages.
        root: Dicts, lists and tuples in each other, and what they hold.
        is_weight: Whether a value is a tensor.
        nbytes: Size of the file, which bounds the names.
        ema: Take averaged weights where there are any.
        weights: Which set to take, by its name or the beginning of it; `"."` for the outermost.
        skip: Names of entries to leave out, with `*` and `?`.

    Raises:
        NoWeightsError: There are none.
        CheckpointError: There are several sets and nothing says which, or not the one asked for.
    """
    entries = entries_of(path, root, is_weight, nbytes)
    entries, skipped = _left_out(entries, skip, lambda entry: entry.name)
    if weights not in (None, "."):
        found = _called(path, entries, weights)
    else:
        sets = known_sets(entries)
        if weights == ".":
            sets = [found for found in sets if not found.part]
        found = _chosen(path, sets, ema, _swaps(root)) if sets else _unknown(path, entries, ema)
    kept, more = _left_out(found.entries.items(), skip, lambda item: item[0])
    found.entries = dict(kept)
    if unmet := [pattern for pattern in skip if pattern not in skipped | more]:
        raise CheckpointError(path, f"it has nothing to leave out that is called {unmet[0]!r}")
    return found


def _left_out(items: Iterable[Any], skip: Sequence[str], name: Any) -> tuple[list[Any], set[str]]:
    """The items whose names match no pattern, and the patterns that matched."""
    kept, met = [], set()
    for item in items:
        matching = {pattern for pattern in skip if fnmatchcase(name(item), pattern)}
        met |= matching
        if not matching:
            kept.append(item)
    return kept, met


def _swaps(root: Any) -> bool:
    """Whether mmengine wrote the file: it puts the averaged weights in place of the others."""
    return isinstance(root, dict) and "message_hub" in root and "ema_state_dict" in root


def _chosen(
    path: str | PathLike[str], sets: list[WeightSet], ema: bool, swapped: bool
) -> WeightSet:
    sets = [s for s in sets if not any(map(OPTIMIZER.match, s.part.split(".")))] or sets
    averaged = [s for s in sets if _is(AVERAGED, s) != swapped]
    plain = [s for s in sets if s not in averaged]
    if not ema and not plain:
        raise CheckpointError(path, f"it has averaged weights only: {_listed(averaged)}")
    candidates = sorted(averaged if ema and averaged else plain, key=lambda found: found.part)
    if len(candidates) > 1 and not _same(candidates):
        raise CheckpointError(
            path,
            f"it holds several sets of weights: {_listed(candidates)}. Choose one: "
            f"weights={candidates[0].part or '.'!r}, or --weights {candidates[0].part or '.'}",
        )
    return candidates[0]


def _is(pattern: re.Pattern[str], found: WeightSet) -> bool:
    return any(pattern.search(name) for name in found.part.split("."))


def _same(sets: Sequence[WeightSet]) -> bool:
    """Whether all sets are the same tensors, saved under several names."""
    first, *rest = [
        {name: getattr(e.value, "where", id(e.value)) for name, e in s.entries.items()}
        for s in sets
    ]
    return all(first == other for other in rest)


def _listed(sets: Sequence[WeightSet]) -> str:
    sets = sorted(sets, key=lambda found: found.part)
    shown = [f"{found.part or '.'!r} ({len(found.entries)} entries)" for found in sets[:8]]
    return ", ".join(shown) + (f" and {len(sets) - 8} more" if len(sets) > 8 else "")


def _called(path: str | PathLike[str], entries: list[Entry], wanted: str) -> WeightSet:
    """The set of a name, of which the wrappers may be left out and the end, if it is one."""
    sets = known_sets(entries)
    plain = without_wrappers(f"{wanted}.").rstrip(".")
    exact = [found for found in sets if found.part in (wanted, plain)]
    longer = [found for found in sets if found.part.startswith(f"{wanted}.")]
    for found in (exact, longer):
        if len(found) == 1:
            return found[0]
    start = f"{wanted}."
    inside = {e.name.removeprefix(start): e for e in entries if e.name.startswith(start)}
    if longer or not inside:
        what = (
            f"it has no weights called {wanted!r}" if not longer else f"{wanted!r} is not one set"
        )
        held = _listed(longer or sets or [_unknown(path, entries, True)])
        raise CheckpointError(path, f"{what}; it holds {held}")
    return WeightSet(wanted, _without_common_wrappers(inside))


def _unknown(path: str | PathLike[str], entries: Sequence[Entry], ema: bool) -> WeightSet:
    """The weights of a model that is not known: by the usual names of the dict that they are in."""
    dicts: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        dicts.setdefault(entry.container, {})[str(entry.key)] = entry
    usual = (*EMA_PARTS, *RAW_PARTS, "") if ema else (*RAW_PARTS, "")
    likely = [name for name in dicts if not any(map(OPTIMIZER.match, name.split(".")))]
    for name in usual:
        if name in dicts:
            return WeightSet(name, _without_common_wrappers(dicts[name]))
    if len(likely) == 1:
        return WeightSet(likely[0], _without_common_wrappers(dicts[likely[0]]))
    if not likely:
        raise NoWeightsError(path, "it holds no weights")
    sets = [WeightSet(name, dicts[name]) for name in likely]
    return _chosen(path, sets, ema, False)


def _without_common_wrappers(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Take off the wrappers that all names have, and a trainer's `model.`, in any order."""
    for _ in range(MAX_DEPTH):
        first = next(iter(entries), "").partition(".")[0] + "."
        usual = first.rstrip(".") in (*WRAPPERS, "model")
        if not usual or not all(name.startswith(first) for name in entries):
            break
        entries = {name.removeprefix(first): entry for name, entry in entries.items()}
    return entries

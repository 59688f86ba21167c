"""The weights in a torch file: which of its entries they are, and what the others are called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import CheckpointError
from .inert import Foreign, Global
from .torch_ema import with_shadows
from .torch_globals import NumpyArray, TensorRef
from .torch_pickle import TorchFile, read_numpy_pickle, read_torch
from .weight_choice import find_weights
from .weight_sets import AVERAGED, EMA_PARTS, RAW_PARTS, Entry, NoWeightsError

logger = logging.getLogger("natten_zoo")

MAX_SHOWN = 80  # characters of a name from a file in a message


@dataclass(frozen=True)
class TorchWeights:
    """What a torch file holds.

    Attributes:
        part: Which part of it the weights are, or `""`.
        weights: Their arrays by name.
        names_aside: Names of what lies among them and is none.
        rest: The file's other entries, inert.
    """

    part: str
    weights: dict[str, mx.array]
    names_aside: list[str]
    rest: dict[str, Any]


def open_torch_dict(path: str | PathLike[str]) -> TorchFile:
    """Open a torch file that holds a dict.

    Raises:
        CheckpointError: It is damaged, or holds something else.
    """
    file = read_numpy_pickle(path) if _is_bare_pickle(Path(path)) else read_torch(path)
    if not isinstance(file.root, dict):
        raise CheckpointError(path, f"it holds a {type(file.root).__name__}, not a dict of weights")
    return file


def _is_bare_pickle(path: Path) -> bool:
    """Whether a file is called as detectron2's pickles are, and begins as one."""
    if path.suffix != ".pkl":
        return False
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def all_torch_arrays(path: str | PathLike[str]) -> dict[str, mx.array]:
    """All entries of a file that is one of several that hold a model together."""
    file = open_torch_dict(path)
    return {str(key): _weight(file, key, value) for key, value in file.root.items()}


def torch_weights(
    file: TorchFile, ema: bool, weights: str | None, skip: Sequence[str]
) -> TorchWeights:
    """Find and read the weights of a torch file.

    Args:
        file: The file.
        ema: Take averaged weights where there are any; if they are an object, the log says so.
        weights: Which set of weights.
        skip: Names of entries to leave out.

    Raises:
        CheckpointError: It has none, or not these; or one of them is no tensor.
    """
    try:
        found = find_weights(
            file.path, file.root, _is_weight, file.nbytes, ema=ema, weights=weights, skip=skip
        )
    except NoWeightsError as error:
        raise CheckpointError(file.path, _why_none(file)) from error
    if ema and weights is None:
        found.entries = with_shadows(file.path, file.root, found)
    aside = _aside(found.entries) if found.known else set()
    arrays = {n: _weight(file, n, e.value) for n, e in found.entries.items() if n not in aside}
    if ema and weights is None:
        _say_not_built(file, found.part)
    taken = {e.container.partition(".")[0] or e.key for e in found.entries.values()}
    rest = {key: value for key, value in file.root.items() if key not in taken}
    return TorchWeights(found.part, arrays, [*sorted(aside), *found.beside], rest)


def _aside(entries: dict[str, Entry]) -> set[str]:
    """Names among a known model's weights of what is none: epochs, scores, NumPy's arrays.

    They can be passed over: all weights of the model will be asked for when it is loaded.
    """
    tensors = any(isinstance(entry.value, TensorRef) for entry in entries.values())
    return {
        name
        for name, entry in entries.items()
        if not entry.is_weight or (tensors and isinstance(entry.value, NumpyArray))
    }


def _is_weight(value: Any) -> bool:
    """Whether something from a torch file is a tensor, be it one that can't be read."""
    if isinstance(value, Foreign):
        return value.name.startswith(("torch._utils.", "torch._tensor."))
    return isinstance(value, TensorRef) or (isinstance(value, NumpyArray) and not value.reason)


def _weight(file: TorchFile, key: Any, value: Any) -> mx.array:
    if isinstance(value, (TensorRef, NumpyArray)) and not getattr(value, "reason", ""):
        return file.read(value)
    name = repr(key)[:MAX_SHOWN]
    if reason := getattr(value, "reason", ""):
        raise CheckpointError(file.path, f"weight {name}: its pickle describes {reason}")
    what = value.name if isinstance(value, (Foreign, Global)) else type(value).__name__
    raise CheckpointError(
        file.path,
        f"weight {name} is no tensor but a {what[:MAX_SHOWN]}; nothing was called. If it is no "
        f"weight, leave it out: skip={name}, or --skip {name}",
    )


def _why_none(file: TorchFile) -> str:
    """What a file holds in place of weights."""
    for part in (*EMA_PARTS, *RAW_PARTS):
        value = file.root.get(part)
        if isinstance(value, Foreign):
            return f"its {part!r} is a {value.name[:MAX_SHOWN]}, which was not built"
    wanted = ", ".join(name[:MAX_SHOWN] for name in sorted(file.foreign)[:8])
    keys = [str(key)[:MAX_SHOWN] for key in file.root if isinstance(key, (str, int))]
    return f"it holds no weights (its entries are {keys[:8]})" + (
        f"; it wants to call {wanted}, which was not done" if wanted else ""
    )


def _say_not_built(file: TorchFile, part: str) -> None:
    """Tell of averaged weights that are an object."""
    for key, value in file.root.items():
        if isinstance(key, str) and isinstance(value, Foreign) and AVERAGED.search(key):
            logger.warning(
                "%s: its %r is a %s, which was not built; the weights are those of %r",
                file.path,
                key[:MAX_SHOWN],
                value.name[:MAX_SHOWN],
                part or "the whole file",
            )

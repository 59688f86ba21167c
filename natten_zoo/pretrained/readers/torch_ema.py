"""Averaged weights without names, as torch_ema keeps them in a checkpoint: a list in their order.

The order is that of a module's parameters, which is that of its entries in the state dict without
its buffers.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any

from .errors import CheckpointError
from .weight_sets import Entry, WeightSet

STATE, SHADOWS = "ema", "shadow_params"
# The module that is averaged where a file has several, and what of it is no parameter.
AVERAGED_PART = "model."
BUFFERS = ("time_emb.weight", "aug_emb.weight", "pos_emb.freqs")


def with_shadows(path: str | PathLike[str], root: Any, found: WeightSet) -> dict[str, Entry]:
    """The entries of a set of weights, averaged where the file says so.

    Args:
        path: The file, for messages.
        root: What it holds.
        found: The weights in it.

    Raises:
        CheckpointError: There are averaged weights and they are not these in another state.
    """
    state = root.get(STATE) if isinstance(root, dict) else None
    shadows = state.get(SHADOWS) if isinstance(state, dict) else None
    if not isinstance(shadows, (list, tuple)):
        return found.entries
    part = [name for name in found.entries if name.startswith(AVERAGED_PART)]
    names = [name for name in part or found.entries if not name.endswith(BUFFERS)]
    shapes = [getattr(found.entries[name].value, "shape", None) for name in names]
    if shapes != [getattr(value, "shape", None) for value in shadows]:
        raise CheckpointError(
            path,
            f"its {len(shadows)} averaged weights, a list, are not in the order and shapes of the "
            f"{len(names)} parameters of its state dict; ema=False, or --no-ema, takes those that "
            "were trained",
        )
    averaged = {
        name: replace(found.entries[name], value=value)
        for name, value in zip(names, shadows, strict=True)
    }
    return found.entries | averaged

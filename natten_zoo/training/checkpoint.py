"""Checkpoints that survive a kill at any moment and bring a run back bit for bit.

`OUT/last` is a folder that `from_pretrained` loads, plus `training.safetensors`: the float32
masters, their average, the optimizer's state, and the random state of every process. A new folder
is written beside it and put in place by renaming; `OUT/previous` is the one before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..pretrained.folder import replace_folder
from ..pretrained.readers.errors import CheckpointError
from ..pretrained.readers.safetensors_file import check_header, read_safetensors
from .step import TrainState

STATE_FILE = "training.safetensors"
Position = dict[str, Any]


class RunError(ValueError):
    """A run cannot go on; the message says why and what is safe on disk."""


def write_folder(target: Path, fill: Callable[[Path], None], keep: Path | None = None) -> None:
    """Let `fill` write a folder and put it at `target`; the one that was there moves to `keep`.

    Raises:
        RunError: The disk is full or the folder not writable; `target` is as it was.
    """
    try:
        replace_folder(target, fill, keep)
    except (OSError, RuntimeError, CheckpointError) as error:
        raise RunError(
            f"[checkpoint] {target} could not be written: {error}. "
            "The checkpoint before it is intact."
        ) from error


def save_state(folder: Path, state: TrainState, position: Position, random: mx.array) -> None:
    """Write `training.safetensors`; `random` comes from `gather_random_state`."""
    arrays: Any = tree_flatten(
        {"weights": state.weights, "optimizer": state.updater.state, "random": random}
    )
    facts = {"position": position, "shapes": state.packing.shapes}
    metadata = {"format": "mlx", **{name: json.dumps(value) for name, value in facts.items()}}
    mx.save_safetensors(str(folder / STATE_FILE), dict(arrays), metadata)


def gather_random_state() -> mx.array:
    """The random state of every process, uint32 `[processes, 2]`. All of them must call it."""
    random: Any = mx.random.state
    own = mx.array(random[0])[None]
    world = mx.distributed.init()
    states = own if world.size() == 1 else mx.distributed.all_gather(own, stream=mx.cpu)
    # Now, not when it is used: only rank 0 uses it, and would wait for the others.
    mx.eval(states)
    return states


def load_state(folder: Path, state: TrainState, data: Position) -> Position:
    """Restore `state` and this process's random state; return the position that was saved.

    Args:
        folder: The checkpoint.
        state: Of a run on the same data, with the same model and number of processes.
        data: What `position` says of the data, as it is now.

    Raises:
        RunError: Data, model or processes are others.
    """
    arrays, metadata = read_safetensors(folder / STATE_FILE)
    position: Position = json.loads(metadata["position"])
    _check_data(folder.parent, position, data)
    random: mx.array = arrays.pop("random")
    world = mx.distributed.init()
    if len(random) != world.size():
        raise RunError(
            f"[checkpoint] {folder} was written by {len(random)} processes and can't "
            f"be resumed by {world.size()}."
        )
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    if shapes != state.packing.shapes:
        raise RunError(f"[checkpoint] {folder} was written for another model.")
    tree: Any = tree_unflatten(list(arrays.items()))
    # In place: the compiled step holds on to these very containers.
    state.weights.update(tree["weights"])
    state.updater.state.update(tree["optimizer"])
    state.show()
    mx.eval(state.captured()[:3])
    high, low = (int(word) for word in random[world.rank()])
    mx.random.seed(high << 32 | low)
    return position


def _check_data(out: Path, saved: Position, now: Position) -> None:
    """Refuse other data: what was learned of one class would be said of another."""
    before: list[str] = saved.get("classes") or now["classes"]  # older checkpoints do not tell them
    if before != now["classes"]:
        pairs = enumerate(zip_longest(before, now["classes"], fillvalue="none"))
        number, (old, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise RunError(
            f"[train] {out} began with {len(before)} classes and now there are "
            f"{len(now['classes'])}, class {number} was {old} and now is {new}; give the run "
            "another 'out'."
        )
    if saved["images"] != now["images"]:
        raise RunError(
            f"[train] {out} began with {saved['images']} images to train on and now there are "
            f"{now['images']}; give the run another 'out'."
        )


def find_latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None for a run that has none.

    Raises:
        RunError: There are checkpoints, but all are damaged.
    """
    damage: list[str] = []
    for name in ("last", "previous"):
        if (out / name / STATE_FILE).exists():
            try:
                check_header(out / name / STATE_FILE)
            except CheckpointError as error:
                damage.append(str(error))
            else:
                return out / name
    if damage:
        raise RunError(
            f"[checkpoint] the run can't go on: {'; '.join(damage)}. Give it another 'out'."
        )
    return None

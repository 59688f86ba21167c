"""Checkpoints that survive a kill at any moment and bring a run back bit for bit.

`OUT/last` is a folder that `from_pretrained` loads, plus `training.safetensors`: the float32
masters, their average, the optimizer's state, and the random state of every process. A new folder
is written beside it and put in place by renaming; `OUT/previous` is the one before. Each has the
digests of its files, and what does not agree with them is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..files import SUMS, read_sums, remove
from ..pretrained.folder import exists, put_in_place, replace_folder, settle
from ..pretrained.readers.digests import check_sums, whole
from ..pretrained.readers.errors import CheckpointError
from ..pretrained.readers.safetensors_file import check_header, read_safetensors
from .step import TrainState

STATE_FILE = "training.safetensors"
LAST, PREVIOUS, DAMAGED = "last", "previous", "last.damaged"
# While a checkpoint is written, `replace_folder` has a new and an old one under these names.
UNFINISHED = (".last.partial", ".previous.old")
PLACES = (LAST, PREVIOUS, *UNFINISHED)
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
        {
            "weights": state.weights,
            "optimizer": state.updater.state,
            "statistics": state.statistics(),
            "random": random,
        }
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
    state.model.update(tree.get("statistics", {}))
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
    files: dict[str, str] = saved.get("files") or now["files"]
    if others := [name for name, digest in now["files"].items() if files.get(name) != digest]:
        raise RunError(
            f"[train] {out} began with other files of {', '.join(others)}: as many, but of other "
            "names, sizes or content; give the run another 'out'."
        )


def find_latest(out: Path) -> Path | None:
    """A folder of a run with a checkpoint, whole or not; None for a run that has none."""
    found = (out / name for name in PLACES if (out / name / STATE_FILE).exists())
    return next(found, None)


def recover(out: Path, total: int, data: Position) -> tuple[Path | None, list[str]]:
    """Make `OUT/last` the newest whole checkpoint of a run, whatever a kill or a disk left.

    Nothing is removed before: what is damaged is kept as `OUT/last.damaged`.

    Args:
        out: The run's folder, which no other process is in.
        total: Updates of the whole run.
        data: What `position` says of the data, as it is now.

    Returns:
        Where that checkpoint was found, None for a run that has none, and what is damaged.

    Raises:
        RunError: There are checkpoints, but all are damaged.
    """
    last, found, damage = out / LAST, [], []
    for name in PLACES:
        folder = out / name
        if not exists(folder) or (name in UNFINISHED and not whole(folder, STATE_FILE)):
            continue
        try:
            found.append((_checked_position(folder, total, data)["step"], folder))
        except (CheckpointError, OSError) as error:
            damage.append(str(error))
    if not found and damage:
        raise RunError(
            f"[checkpoint] the run can't go on: {'; '.join(damage)}. Give it another 'out'."
        )
    newest = max(found, key=lambda pair: pair[0])[1] if found else None  # the first of equals
    if newest:
        if newest != last and last in (folder for _, folder in found):
            put_in_place(newest, last, out / PREVIOUS)
        elif newest != last:
            if exists(last):
                remove(out / DAMAGED)
                last.rename(out / DAMAGED)
            newest.rename(last)
    for name in UNFINISHED:
        remove(out / name)
    settle(out / "best")
    return newest, damage


def _checked_position(folder: Path, total: int, data: Position) -> Position:
    """The position of a checkpoint that can be resumed.

    Raises:
        CheckpointError: A file of it is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "it is no folder")
    check_sums(folder)
    if STATE_FILE not in read_sums(folder):
        raise CheckpointError(folder / STATE_FILE, f"{SUMS} has no digest of it")
    metadata = check_header(folder / STATE_FILE)
    try:
        position, shapes = (json.loads(metadata[name]) for name in ("position", "shapes"))
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(folder / STATE_FILE, f"its metadata is damaged ({error})") from None
    number, maybe = (int, float), (int, float, type(None))
    kinds = {"step": int, "images": int, "seconds": number, "best": maybe, "accuracy": maybe}
    wrong = [name for name, kind in kinds.items() if not _is_a(position, name, kind)]
    if not isinstance(shapes, dict) or wrong:
        raise CheckpointError(folder / STATE_FILE, f"its metadata is damaged ({wrong or 'shapes'})")
    if position["images"] == data["images"] and not 0 <= position["step"] <= total:
        raise CheckpointError(
            folder / STATE_FILE, f"it is at update {position['step']} of {total}, which can't be"
        )
    return position


def _is_a(position: Any, name: str, kind: Any) -> bool:
    known = isinstance(position, dict) and name in position
    return known and isinstance(position[name], kind) and not isinstance(position[name], bool)

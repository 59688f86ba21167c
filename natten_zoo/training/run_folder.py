"""The folder of a run: where it may lie, who is in it, and whose run it holds."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import mlx.core as mx

from ..data.labeled import class_parents
from ..files import hold
from ..pretrained.readers.digests import check_sums
from ..pretrained.readers.reader import CONFIG
from .checkpoint import PLACES, RunError, find_latest
from .config import DATA_SETS, Recipe

RECIPE, LOCK = "recipe.yaml", ".lock"


def make_out(recipe: Recipe) -> Path:
    """Make the run's folder.

    Raises:
        ValueError: There is none, or it lies in the data.
    """
    if not recipe.out:
        raise ValueError("[train] 'out' must name a folder for the run.")
    out = Path(recipe.out)
    if _lies_in_data(out, recipe.data):
        raise ValueError(
            f"[train] 'out' must lie outside of the data, where it would be a class, but got {out}."
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def hold_out(out: Path) -> AbstractContextManager[None]:
    """The folder for this run alone, as long as it lasts: two would mix their files.

    Raises:
        BusyError: Another run is in it; the message names its process.
    """
    if mx.distributed.init().rank() > 0:
        return nullcontext()
    return hold(out / LOCK, f"[train] {out}")


def check_recipe(recipe: Recipe) -> None:
    """Refuse to go on with a run of another recipe.

    Raises:
        RunError: The folder holds one, or a run whose recipe nobody can read.
    """
    out = Path(recipe.out)
    if find_latest(out) is None:
        return
    saved = _saved_recipe(out)
    if names := recipe.conflicts(saved):
        changes = ", ".join(f"{n} {getattr(saved, n)!r} -> {getattr(recipe, n)!r}" for n in names)
        raise RunError(
            f"[train] {out} holds a run of another recipe ({changes}). Resume it with "
            "its own, or give this one another 'out'."
        )


def _saved_recipe(out: Path) -> Recipe:
    """What a checkpoint was trained by, or where none tells, `recipe.yaml`, which has no digest."""
    for folder in (out / name for name in PLACES):
        try:
            check_sums(folder, [CONFIG])
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            return Recipe.from_dict(config["training"]["recipe"])
        except (ValueError, OSError, KeyError, TypeError, RecursionError):
            continue
    try:
        return Recipe.load(out / RECIPE)
    except (ValueError, OSError) as error:
        raise RunError(f"[train] the recipe of the run in {out} can't be read: {error}") from None


def _lies_in_data(out: Path, data: str) -> bool:
    if data in DATA_SETS or not Path(data).is_dir():
        return False
    folders = class_parents(Path(data))
    return any(out.resolve().is_relative_to(folder.resolve()) for folder in folders)

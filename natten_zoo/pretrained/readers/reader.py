"""Reads a checkpoint of any known format into a dict of MLX arrays.

| what | where it comes from |
|---|---|
| our folder | `config.json`, `model.safetensors` (or a sharded index), `preprocessor_config.json` |
| Hugging Face folder | `config.json`, `model.safetensors` or `pytorch_model.bin` |
| `.safetensors` | anything: its metadata or the shapes tell whose layouts it has |
| `.pth`, `.pt`, `.bin` | a bare state dict (upstream), training checkpoints (timm, mmcv, ...) |
| `.pkl` | a pickled dict of NumPy arrays (detectron2) |
| `.npz` | NumPy's and MLX's own |

Whatever the format, one function tells which entries are the weights (`find_weights`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from .budget import parse_json
from .digests import changed, check_sums
from .errors import CheckpointError
from .npz_file import read_npz
from .safetensors_file import read_safetensors
from .torch_weights import MAX_SHOWN, all_torch_arrays, open_torch_dict, torch_weights
from .weight_choice import find_weights

logger = logging.getLogger("natten_zoo")

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# In a folder, the first that is there.
WEIGHT_FILES = (
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_JSON = 16 << 20

Layout = Literal["mlx", "torch"]


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: The file or folder.
        weights: Arrays by name, laid out as `format` says.
        format: `"mlx"` if the file says that MLX wrote it, else `"torch"`; whose layouts the
            weights have is seen in them (`natten_zoo.pretrained.translate`).
        config: `config.json`, where there is one.
        preprocessor: `preprocessor_config.json`, where there is one.
        part: Which part of the file the weights are (`"state_dict_ema"`), or `""`.
        metadata: What else the file holds, inert: a torch file's other entries, or the
            safetensors metadata.
        ignored: Classes and functions that a torch file's metadata wanted; none was imported.
    """

    path: Path
    weights: dict[str, mx.array]
    format: Layout
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None
    part: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which of a file's entries to take.

    Attributes:
        ema: Averaged weights, where there are any.
        weights: Which set of weights, where there are several: its name or the beginning of it.
        skip: Names of entries to leave out, with `*` and `?`.
    """

    ema: bool = True
    weights: str | None = None
    skip: Sequence[str] = ()


def read_checkpoint(
    path: str | PathLike[str],
    *,
    ema: bool = True,
    weights: str | None = None,
    skip: str | Sequence[str] = (),
) -> Checkpoint:
    """Read a checkpoint file or folder. Nothing that is pickled in it is run.

    Args:
        path: A file or folder.
        ema: Take the averaged weights of a training checkpoint where it has them.
        weights: Which set of weights to take where there are several (`"student"`); an error
            lists them.
        skip: Names of entries to leave out, with `*` and `?`, of those that the weights lie
            among.

    Returns:
        The weights and what is known about them. float64 becomes float32.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        CheckpointError: If it is damaged, hostile or of an unknown format, or which of its entries
            are the weights can't be told.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    selection = Selection(ema, weights, (skip,) if isinstance(skip, str) else tuple(skip))
    return _read_folder(path, selection) if path.is_dir() else _read_file(path, selection)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If it is something else.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise CheckpointError(path, f"no valid JSON (more than {MAX_JSON} bytes)")
    return parse_json(path, path.read_bytes(), size)


def _read_folder(folder: Path, selection: Selection) -> Checkpoint:
    weights = weight_file(folder)
    check_sums(folder, [weights.name])
    checkpoint = _read_file(weights, selection)
    checkpoint.path = folder
    for name in (CONFIG, PREPROCESSOR):
        if (folder / name).is_file():
            attribute = "config" if name == CONFIG else "preprocessor"
            setattr(checkpoint, attribute, read_json(folder / name))
    for name in changed(folder, (CONFIG, PREPROCESSOR)):
        logger.warning("%s was changed after it had been written with its weights", folder / name)
    return checkpoint


def weight_file(path: Path) -> Path:
    """The file that a checkpoint's weights are read from.

    Raises:
        CheckpointError: `path` is a folder that has none, or several and no usual name.
    """
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".pkl")
    others = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
    if len(others) == 1:
        return others[0]
    found = "several weight files" if others else "no weights"
    raise CheckpointError(path, f"the folder holds {found}; expected {WEIGHTS}")


def _read_file(path: Path, selection: Selection) -> Checkpoint:
    if path.name.endswith(".index.json"):
        return _read_shards(path, selection)
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(path, "it is no regular file")
    arrays, layout, metadata = _read_arrays(path)
    if arrays is None:
        return _read_torch_file(path, selection)
    return _flat(path, arrays, layout, metadata, path.stat().st_size, selection)


def _read_arrays(path: Path) -> tuple[dict[str, mx.array] | None, Layout, dict[str, str]]:
    """The arrays of a file that holds nothing else, or None."""
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        arrays, metadata = read_safetensors(path)
        return arrays, "mlx" if metadata.get("format") == "mlx" else "torch", dict(metadata)
    if path.suffix == ".npz":
        return read_npz(path), "torch", {}
    return None, "torch", {}


def _flat(
    path: Path,
    arrays: dict[str, mx.array],
    layout: Layout,
    metadata: dict[str, Any],
    nbytes: int,
    selection: Selection,
) -> Checkpoint:
    """The weights among the arrays of a file that holds nothing else."""
    found = find_weights(path, arrays, lambda _: True, nbytes, **vars(selection))
    _say_unused(path, found.beside)
    weights = {name: entry.value for name, entry in found.entries.items()}
    return Checkpoint(path, weights, layout, part=found.part, metadata=metadata)


def _looks_like_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _read_shards(index: Path, selection: Selection) -> Checkpoint:
    """Join the files that an index names; every name must be where the index says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "it has no weight_map")
    shards: dict[str, tuple[dict[str, mx.array], Layout, dict[str, str]]] = {}
    nbytes = 0
    for name in sorted(set(map(str, weight_map.values()))):
        shard = index.parent / name
        if Path(name).name != name or name.endswith(".json"):
            raise CheckpointError(
                index, f"it names the shard {name!r}, which is no plain file name"
            )
        if not shard.is_file():
            raise CheckpointError(index, f"its shard {name!r} is missing")
        check_sums(index.parent, [name])
        arrays, layout, metadata = _read_arrays(shard)
        arrays = all_torch_arrays(shard) if arrays is None else arrays
        shards[name] = arrays, layout, metadata
        nbytes += shard.stat().st_size
    weights = {}
    for key, name in weight_map.items():
        if key not in shards[name][0]:
            raise CheckpointError(index, f"weight {key!r} is not in {name!r}")
        weights[key] = shards[name][0][key]
    _, layout, metadata = next(iter(shards.values()))
    return _flat(index, weights, layout, dict(metadata), nbytes, selection)


def _read_torch_file(path: Path, selection: Selection) -> Checkpoint:
    file = open_torch_dict(path)
    found = torch_weights(file, selection.ema, selection.weights, selection.skip)
    _say_unused(path, found.names_aside)
    return Checkpoint(
        path,
        found.weights,
        "torch",
        part=found.part,
        metadata=found.rest,
        ignored=tuple(sorted(file.foreign)),
    )


def _say_unused(path: Path, names: Sequence[str]) -> None:
    """Tell of what lies among the weights and is none of theirs."""
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        listed = ", ".join(name[:MAX_SHOWN] for name in names[:8])
        logger.warning("%s: not used, beside the weights: %s%s", path, listed, more)

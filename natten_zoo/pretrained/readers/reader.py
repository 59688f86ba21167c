"""Reads a checkpoint of any known format into a dict of MLX arrays.

| what | where it comes from |
|---|---|
| our folder | `config.json`, `model.safetensors` (or a sharded index), `preprocessor_config.json` |
| Hugging Face folder | `config.json`, `model.safetensors` or `pytorch_model.bin` |
| `.safetensors` | anything; its metadata tell whether MLX wrote it |
| `.pth`, `.pt`, `.bin` | a bare state dict (upstream), training checkpoints (timm, mmcv, ...) |
| `.npz` | upstream's names, in layouts that the model's `sanitize` tells (all-in-one-mlx) |
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from .digests import changed, check_sums
from .errors import CheckpointError
from .pickle_machine import Foreign, Global
from .safetensors_file import read_safetensors
from .torch_globals import NumpyArray, TensorRef
from .torch_pickle import TorchFile, read_torch, to_mlx

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
# Where training checkpoints keep the weights: the averaged ones are what their authors evaluate.
EMA_PARTS = ("state_dict_ema", "model_ema")
RAW_PARTS = ("state_dict", "model", "model_state_dict")
# Wrappers that put their name before every key (DataParallel, torch.compile).
WRAPPERS = ("module.", "_orig_mod.")
MAX_JSON = 16 << 20


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: The file or folder.
        weights: Arrays by name, laid out as `format` says.
        format: `"mlx"` for weights that MLX wrote, `"torch"` for torch's layouts.
        config: `config.json`, where there is one.
        preprocessor: `preprocessor_config.json`, where there is one.
        part: Which part of a training checkpoint the weights are (`"state_dict_ema"`), or `""`.
        metadata: What else the file holds, inert: a torch file's other entries, or the
            safetensors metadata.
        ignored: Classes and functions that a torch file's metadata wanted; none was imported.
    """

    path: Path
    weights: dict[str, mx.array]
    format: Literal["mlx", "torch"]
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None
    part: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_checkpoint(path: str | PathLike[str], *, ema: bool = True) -> Checkpoint:
    """Read a checkpoint file or folder. Nothing that is pickled in it is run.

    Args:
        path: A file or folder.
        ema: Take the averaged weights of a training checkpoint where it has them.

    Returns:
        The weights and what is known about them. float64 becomes float32.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        CheckpointError: If it is damaged, hostile or of an unknown format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _read_folder(path, ema) if path.is_dir() else _read_file(path, ema)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If it is something else.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "no JSON object")
    return value


def _read_folder(folder: Path, ema: bool) -> Checkpoint:
    weights = weight_file(folder)
    check_sums(folder, [weights.name])
    checkpoint = _read_file(weights, ema)
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
    suffixes = (".safetensors", ".pth", ".pt", ".bin")
    others = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
    if len(others) == 1:
        return others[0]
    found = "several weight files" if others else "no weights"
    raise CheckpointError(path, f"the folder holds {found}; expected {WEIGHTS}")


def _read_file(path: Path, ema: bool) -> Checkpoint:
    if path.name.endswith(".index.json"):
        return _read_shards(path, ema)
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        weights, metadata = read_safetensors(path)
        written_by_mlx = metadata.get("format") == "mlx"
        return Checkpoint(
            path, weights, "mlx" if written_by_mlx else "torch", metadata=dict(metadata)
        )
    if path.suffix == ".npz":
        return Checkpoint(path, _read_npz(path), "torch")
    return _read_torch_file(path, ema)


def _read_npz(path: Path) -> dict[str, mx.array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: mx.array(file[name]) for name in file}
    except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
        raise CheckpointError(path, f"no valid .npz file ({error})") from error


def _looks_like_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _read_shards(index: Path, ema: bool) -> Checkpoint:
    """Join the files that an index names; every name must be where the index says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "it has no weight_map")
    shards = {}
    for name in sorted(set(map(str, weight_map.values()))):
        shard = index.parent / name
        if Path(name).name != name or name.endswith(".json"):
            raise CheckpointError(
                index, f"it names the shard {name!r}, which is no plain file name"
            )
        if not shard.is_file():
            raise CheckpointError(index, f"its shard {name!r} is missing")
        check_sums(index.parent, [name])
        shards[name] = _read_file(shard, ema)
    weights = {}
    for key, name in weight_map.items():
        if key not in shards[name].weights:
            raise CheckpointError(index, f"weight {key!r} is not in {name!r}")
        weights[key] = shards[name].weights[key]
    first = next(iter(shards.values()))
    return Checkpoint(index, weights, first.format, metadata=first.metadata)


def _read_torch_file(path: Path, ema: bool) -> Checkpoint:
    file = read_torch(path)
    if not isinstance(file.root, dict):
        raise CheckpointError(path, f"it holds a {type(file.root).__name__}, not a dict of weights")
    part, entries = _weights_part(file, ema)
    weights = {key: _weight(file, key, value) for key, value in entries.items()}
    rest = {key: value for key, value in file.root.items() if part and key != part}
    return Checkpoint(
        path,
        _unwrapped(weights),
        "torch",
        part=part,
        metadata=rest,
        ignored=tuple(sorted(file.foreign)),
    )


def _weights_part(file: TorchFile, ema: bool) -> tuple[str, dict[Any, Any]]:
    """Which part of the saved dict is the weights, and that part."""
    for part in (*EMA_PARTS, *RAW_PARTS) if ema else RAW_PARTS:
        if isinstance(file.root.get(part), dict) and file.root[part]:
            return part, file.root[part]
        if isinstance(file.root.get(part), Foreign):
            name = file.root[part].name
            raise CheckpointError(file.path, f"its {part!r} is a {name}, which was not built")
    if any(isinstance(value, (TensorRef, NumpyArray)) for value in file.root.values()):
        return "", file.root
    wanted = ", ".join(file.foreign)
    raise CheckpointError(
        file.path,
        f"it holds no weights (its entries are {[str(key)[:40] for key in file.root][:8]})"
        + (f"; it wants to call {wanted}, which was not done" if wanted else ""),
    )


def _weight(file: TorchFile, key: Any, value: Any) -> mx.array:
    if not isinstance(key, str):
        raise CheckpointError(file.path, f"a weight's name is a {type(key).__name__}")
    if isinstance(value, TensorRef):
        return file.read(value)
    if isinstance(value, NumpyArray) and value.array is not None:
        return to_mlx(value.array, str(value.array.dtype))
    what = value.name if isinstance(value, (Foreign, Global)) else type(value).__name__
    raise CheckpointError(
        file.path, f"weight {key!r} is no tensor but a {what}; nothing was called"
    )


def _unwrapped(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in weights):
            weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    return weights

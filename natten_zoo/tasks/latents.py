"""Reading the latents of a video as pipelines save them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..pretrained.readers.errors import CheckpointError
from ..pretrained.readers.safetensors_file import read_safetensors

# What they are called in a file that has other arrays, too.
NAMES = ("latents", "latent", "samples")


def read_latents(path: str | os.PathLike[str], channels: int) -> mx.array:
    """The latents in a file.

    Args:
        path: A `.safetensors`, `.npz` or `.npy` file, which holds one array or one that is
            called `latents`, `latent` or `samples`, of 5 axes or of 4, for one video. Torch
            and diffusers have the channels before the frames, MLX last; their number tells.
        channels: Of the model's latents.

    Returns:
        `[batch, frames, rows, columns, channels]`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no latents, or which of its arrays or axes are meant can't be told; a
            damaged file is named, too.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    name, x = _chosen(path, _arrays(path))
    if x.ndim == 4:
        x = x[None]
    if x.ndim != 5 or channels not in (x.shape[1], x.shape[-1]):
        raise ValueError(
            f"[read_latents] {path}: {name!r} must have 4 or 5 axes, the channels, {channels}, "
            f"first (after the batch) or last, but has the shape {list(x.shape)}."
        )
    if x.shape[1] == x.shape[-1]:
        raise ValueError(
            f"[read_latents] {path}: which axis of {name!r} has the channels can't be told, as two "
            f"have {channels}: {list(x.shape)}. Cut the video, or pass an array to decode_video."
        )
    return mx.moveaxis(x, 1, -1) if x.shape[1] == channels else x


def _arrays(path: Path) -> dict[str, mx.array]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"[read_latents] {path}: must be a .safetensors, .npz or .npy file.")
    try:
        found = np.load(path, allow_pickle=False)
        arrays = {"array": found} if isinstance(found, np.ndarray) else dict(found)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(path, f"NumPy cannot read it ({error})") from error
    numbers = {n: x for n, x in arrays.items() if np.issubdtype(x.dtype, np.floating)}
    return {n: mx.array(x if x.dtype != np.float64 else x.astype(np.float32))
            for n, x in numbers.items()}  # fmt: skip


def _chosen(path: Path, arrays: dict[str, mx.array]) -> tuple[str, mx.array]:
    names = [name for name in NAMES if name in arrays]
    if len(arrays) == 1 or names:
        name = names[0] if names else next(iter(arrays))
        return name, arrays[name]
    listed = ", ".join(map(repr, list(arrays)[:8])) or "none of floating point numbers"
    raise ValueError(
        f"[read_latents] {path}: must hold one array, or one called "
        f"{' or '.join(map(repr, NAMES))}, but has {listed}."
    )

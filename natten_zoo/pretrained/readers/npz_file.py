"""Reads NumPy's archives, an array at a time, after checking what they say of themselves."""

from __future__ import annotations

import math
import zipfile
from os import PathLike
from pathlib import Path

import mlx.core as mx
import numpy as np

from .budget import Budget, is_shape
from .errors import CheckpointError
from .torch_pickle import to_mlx
from .zip_members import members


def read_npz(path: str | PathLike[str]) -> dict[str, mx.array]:
    """Read an `.npz` file. float64 becomes float32.

    Raises:
        CheckpointError: It is damaged, unpacks to far more than its size, or holds what is no
            array of numbers.
    """
    nbytes = Path(path).stat().st_size
    budget = Budget(path, nbytes, what="arrays")
    with open(path, "rb") as file:
        try:
            found = members(path, file, nbytes)
        except CheckpointError as error:
            raise CheckpointError(path, f"no valid .npz file: {error.reason}") from error
        for member in found:
            budget.spend(member.info.file_size)
        try:
            with zipfile.ZipFile(file) as archive:
                return {
                    info.filename.removesuffix(".npy"): _read(path, archive, info)
                    for info in archive.infolist()
                }
        except CheckpointError:
            raise
        except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
            raise CheckpointError(path, f"no valid .npz file ({error})") from error


def _read(path: str | PathLike[str], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> mx.array:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{info.filename!r} has version {version}")
        shape, fortran, dtype = read_header(member)
        if dtype.kind not in "biufcV" or dtype.hasobject or dtype.names is not None:
            raise CheckpointError(path, f"{info.filename!r} is of {dtype}, which are no numbers")
        if not is_shape(shape):
            raise CheckpointError(path, f"{info.filename!r} has a shape that MLX cannot have")
        count = math.prod(shape)
        if member.tell() + count * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename!r} is no array of {dtype}{list(shape)}")
        data = member.read()
    array = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
    return to_mlx(array) if count else mx.zeros(shape, to_mlx(np.zeros((), dtype)).dtype)

"""Reads what `torch.save` wrote, without torch and without running anything that is in it.

Such a file is a zip archive: `data.pkl` is a pickle that describes the object, and every storage
is a member of its own, stored uncompressed, which is mapped into memory and copied once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import mlx.core as mx
import numpy as np

from .errors import CheckpointError
from .pickle_machine import Foreign, Global, Machine, PickleError
from .torch_archive import ByteOrder, TorchArchive
from .torch_globals import KNOWN, READ_AS, TensorRef, build_storage, itemsize

# Tensors may share a storage (tied weights, views), but a file that describes far more than it
# holds is a bomb.
MAX_EXPANSION = 8


@dataclass
class TorchFile:
    """A torch file whose pickle has been read and whose tensors have not.

    Attributes:
        path: The file.
        root: What was saved: containers of plain values, `TensorRef`s and inert `Foreign`s.
        foreign: Names of the classes and functions that the pickle wanted and did not get.
    """

    path: str
    root: Any
    foreign: frozenset[str]
    _archive: TorchArchive
    _arrays: dict[tuple[Any, ...], mx.array] = field(default_factory=dict)
    _nbytes: int = 0

    def read(self, ref: TensorRef) -> mx.array:
        """Read one tensor. Tensors that are the same view come back as the same array.

        Raises:
            CheckpointError: If the storage is missing, damaged or smaller than the view.
        """
        where = (ref.storage.key, ref.dtype, ref.offset, ref.shape, ref.stride)
        if where not in self._arrays:
            self._nbytes += ref.nbytes
            if self._nbytes > MAX_EXPANSION * self._archive.nbytes:
                raise CheckpointError(
                    self.path, f"its tensors take more than {MAX_EXPANSION} times the file's size"
                )
            self._arrays[where] = self._read(ref)
        return self._arrays[where]

    def _read(self, ref: TensorRef) -> mx.array:
        with self._archive.storage(ref.storage.key) as data:
            size = itemsize(ref.storage.dtype)
            if len(data) != ref.storage.count * size:
                raise CheckpointError(
                    self.path,
                    f"storage {ref.storage.key} should hold {ref.storage.count} elements of "
                    f"{size} bytes but has {len(data)} bytes",
                )
            return _strided(ref, data, self._archive.byteorder)


def read_torch(path: str | PathLike[str]) -> TorchFile:
    """Open a torch zip archive and read its pickle.

    Args:
        path: A file that `torch.save` wrote (torch 1.6 or newer).

    Returns:
        The saved object with its tensors still on disk.

    Raises:
        CheckpointError: If it is not such an archive, is damaged, or what it holds is itself
            something that would have to be called.
    """
    archive = TorchArchive(path)
    machine = Machine(KNOWN, build_storage)
    try:
        root = machine.run(archive.member("data.pkl"))
    except PickleError as error:
        raise CheckpointError(path, str(error)) from error
    if isinstance(root, (Foreign, Global)):
        raise CheckpointError(path, f"it holds no weights but {root.name}, which was not called")
    return TorchFile(str(path), root, frozenset(machine.foreign), archive)


def _strided(ref: TensorRef, data: memoryview, byteorder: ByteOrder) -> mx.array:
    """Copy a view out of its storage's bytes into an MLX array."""
    dtype = np.dtype(READ_AS.get(ref.dtype, ref.dtype)).newbyteorder(byteorder)
    if not math.prod(ref.shape):
        return to_mlx(np.zeros(ref.shape, dtype), ref.dtype)
    flat = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)[ref.offset :]
    stride = [step * dtype.itemsize for step in ref.stride]
    view = np.lib.stride_tricks.as_strided(flat, ref.shape, stride, writeable=False)
    return to_mlx(view, ref.dtype)


def to_mlx(array: np.ndarray, dtype: str) -> mx.array:
    """Copy an array to MLX, which has no float64 on a GPU and takes native byte order only."""
    if dtype == "bool":
        array = array != 0
    elif dtype == "float64":
        array = array.astype(np.float32)
    if not (array.dtype.isnative and array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="))
    copied = mx.array(array)
    return copied.view(mx.bfloat16) if dtype == "bfloat16" else copied

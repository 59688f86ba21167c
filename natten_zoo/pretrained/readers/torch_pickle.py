"""Reads what `torch.save` wrote, without torch and without running anything that is in it.

Such a file is a zip archive: `data.pkl` is a pickle that describes the object, and every storage
is a member of its own, stored uncompressed, which is mapped into memory and copied once. What
detectron2 keeps as `.pkl` is a pickle alone, with NumPy's arrays in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .budget import Budget
from .errors import CheckpointError
from .inert import Foreign, Global, PickleError
from .pickle_machine import Machine
from .torch_archive import ByteOrder, TorchArchive
from .torch_globals import KNOWN, READ_AS, NumpyArray, TensorRef, build_storage, itemsize


@dataclass
class TorchFile:
    """A torch file whose pickle has been read and whose tensors have not.

    Attributes:
        path: The file.
        root: What was saved: containers of plain values, `TensorRef`s and inert `Foreign`s.
        foreign: Names of the classes and functions that the pickle wanted and did not get.
        nbytes: Size of the file.
    """

    path: str
    root: Any
    foreign: frozenset[str]
    nbytes: int
    _budget: Budget
    _archive: TorchArchive | None
    _arrays: dict[Any, mx.array] = field(default_factory=dict)

    def read(self, ref: TensorRef | NumpyArray) -> mx.array:
        """Read one tensor. Tensors that are the same view come back as the same array.

        Raises:
            CheckpointError: If the storage is missing, damaged or smaller than the view, or all
                that was read takes far more than the file.
        """
        where = ref if isinstance(ref, NumpyArray) else ref.where
        if where not in self._arrays:
            self._budget.spend(ref.nbytes)
            self._arrays[where] = (
                to_mlx(ref.array) if isinstance(ref, NumpyArray) else self._read(ref)
            )
        return self._arrays[where]

    def _read(self, ref: TensorRef) -> mx.array:
        assert self._archive is not None, "without an archive nothing refers to a storage"
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
    machine = Machine(KNOWN, build_storage, path, archive.nbytes)
    return _opened(path, machine, archive.member("data.pkl"), archive.nbytes, archive)


def read_numpy_pickle(path: str | PathLike[str]) -> TorchFile:
    """Read a bare pickle whose weights are NumPy arrays, as detectron2's `.pkl` files are.

    Args:
        path: The file, all of which is read.

    Returns:
        The saved object; its arrays keep their bytes until they are asked for.

    Raises:
        CheckpointError: If it is damaged, refers to storages outside of it, or what it holds is
            itself something that would have to be called.
    """
    program = Path(path).read_bytes()
    machine = Machine(KNOWN, _no_storage, path, len(program), largest=len(program))
    return _opened(path, machine, program, len(program), None)


def _no_storage(_: Any) -> Any:
    raise PickleError("its pickle refers to storages, which a bare pickle has not")


def _opened(
    path: str | PathLike[str],
    machine: Machine,
    program: bytes,
    nbytes: int,
    archive: TorchArchive | None,
) -> TorchFile:
    try:
        root = machine.run(program)
    except PickleError as error:
        raise CheckpointError(path, str(error)) from error
    if isinstance(root, Foreign) and root.reason:
        raise CheckpointError(path, f"its pickle describes {root.reason}")
    if isinstance(root, (Foreign, Global)):
        raise CheckpointError(path, f"it holds no weights but {root.name}, which was not called")
    # Tensors may share a storage (tied weights, views), but far more than the file is a bomb.
    budget = Budget(path, nbytes, free=0, what="tensors")
    return TorchFile(str(path), root, frozenset(machine.foreign), nbytes, budget, archive)


def _strided(ref: TensorRef, data: memoryview, byteorder: ByteOrder) -> mx.array:
    """Copy a view out of its storage's bytes into an MLX array."""
    dtype = np.dtype(READ_AS.get(ref.dtype, ref.dtype)).newbyteorder(byteorder)
    if not math.prod(ref.shape):  # NumPy does not make all shapes that are empty
        return mx.broadcast_to(to_mlx(np.zeros((), dtype), ref.dtype), ref.shape)
    flat = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)[ref.offset :]
    stride = [step * dtype.itemsize for step in ref.stride]
    view = np.lib.stride_tricks.as_strided(flat, ref.shape, stride, writeable=False)
    return to_mlx(view, ref.dtype)


def to_mlx(array: np.ndarray, dtype: str | None = None) -> mx.array:
    """Copy an array to MLX, which has no float64 on a GPU and takes native byte order only.

    Args:
        array: The values.
        dtype: What they are, where NumPy does not have it: bfloat16 as uint16, bool as uint8.
    """
    dtype = str(array.dtype.newbyteorder("=")) if dtype is None else dtype
    if dtype == "bool":
        array = array != 0
    elif dtype == "float64":
        array = array.astype(np.float32)
    if not (array.dtype.isnative and array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="))
    copied = mx.array(array)
    return copied.view(mx.bfloat16) if dtype == "bfloat16" else copied

"""Reads what `torch.save` wrote, without torch and without running anything that is in it.

Such a file is a zip archive: `data.pkl` is a pickle that describes the object, and every storage
is a member of its own, stored uncompressed, which is mapped into memory and copied once.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from .errors import CheckpointError
from .pickle_machine import Foreign, Global, Machine, PickleError
from .torch_archive import ByteOrder, TorchArchive

# Torch's storage classes and dtypes, and the NumPy dtype that their bytes are read as.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
DTYPES = {
    **{name: name for name in (*STORAGES.values(), "uint16", "uint32", "uint64")},
    "float": "float32",
    "double": "float64",
    "half": "float16",
}
READ_AS = {"bfloat16": "uint16", "bool": "uint8"}

# Tensors may share a storage (tied weights, views), but a file that describes far more than it
# holds is a bomb.
MAX_EXPANSION = 8


@dataclass(frozen=True, eq=False)
class Storage:
    """One storage of the archive: the member's key, its dtype and how many elements it has."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """Where a tensor lies: a strided view into a storage, nothing read yet."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it is contiguous."""
        return math.prod(self.shape) * _itemsize(self.dtype)


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
            itemsize = _itemsize(ref.storage.dtype)
            if len(data) != ref.storage.count * itemsize:
                raise CheckpointError(
                    self.path,
                    f"storage {ref.storage.key} should hold {ref.storage.count} elements of "
                    f"{itemsize} bytes but has {len(data)} bytes",
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
    machine = Machine(_KNOWN, _storage)
    try:
        root = machine.run(archive.member("data.pkl"))
    except PickleError as error:
        raise CheckpointError(path, str(error)) from error
    if isinstance(root, (Foreign, Global)):
        raise CheckpointError(path, f"it holds no weights but {root.name}, which was not called")
    return TorchFile(str(path), root, frozenset(machine.foreign), archive)


def _itemsize(dtype: str) -> int:
    return np.dtype(READ_AS.get(dtype, dtype)).itemsize


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


# What the pickle may build. Every argument comes from the file and is checked.


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise PickleError(f"its pickle describes {what}")


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 32 and all(map(_count, value))


def _storage(reference: Any) -> Storage:
    """`("storage", torch.FloatStorage, key, device, number of elements)` to a `Storage`."""
    _check(isinstance(reference, tuple) and len(reference) == 5, "a malformed storage reference")
    tag, kind, key, _, count = reference
    _check(tag == "storage" and isinstance(key, str) and _count(count), "a malformed storage")
    _check(isinstance(kind, Global), "a storage of no type")
    name = kind.name.rpartition(".")[2]
    _check(name in STORAGES, f"a storage of type {kind.name}, which MLX does not know")
    return Storage(key, STORAGES[name], count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str) -> TensorRef:
    _check(isinstance(storage, Storage), "a tensor without a storage")
    _check(_count(offset) and _counts(shape) and _counts(stride), "a tensor of impossible shape")
    _check(len(shape) == len(stride), "a tensor with more sizes than strides, or fewer")
    _check(all(size < 1 << 31 for size in shape), f"a tensor of shape {shape}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    end = (last + 1) * _itemsize(dtype) if math.prod(shape) else 0
    _check(
        end <= storage.count * _itemsize(storage.dtype),
        f"a tensor of shape {shape} that reaches past the end of its storage",
    )
    return TensorRef(storage, dtype, offset, shape, stride)


def _rebuild_tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    _check(isinstance(storage, Storage), "a tensor without a storage")
    return _tensor(storage, offset, shape, stride, storage.dtype)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> TensorRef:
    _check(isinstance(dtype, Global), "a tensor of no dtype")
    module, _, name = dtype.name.rpartition(".")
    _check(
        module == "torch" and name in DTYPES, f"a tensor of {dtype.name}, which MLX does not know"
    )
    return _tensor(storage, offset, shape, stride, DTYPES[name])


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    _check(isinstance(pairs, (list, tuple)), "a dict made of something else than pairs")
    _check(all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs), "a malformed dict")
    _check(all(isinstance(p[0], (str, int)) for p in pairs), "a dict with unusual keys")
    return dict(pairs)


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _size(sizes: Any = ()) -> tuple[int, ...]:
    _check(isinstance(sizes, (list, tuple)) and _counts(tuple(sizes)), "an impossible size")
    return tuple(sizes)


def _first(value: Any = None, *_: Any) -> Any:
    return value


# NumPy's pickles, as metadata of timm and mmcv holds them.


@dataclass(eq=False)
class NumpyDtype:
    """A plain NumPy dtype that is being unpickled."""

    name: str
    byteorder: Literal["<", ">", "|", "="] = "|"

    def restore(self, state: Any) -> None:
        """Take the byte order from `(version, order, ...)`."""
        _check(isinstance(state, tuple) and len(state) > 1, "a malformed NumPy dtype")
        _check(state[1] in ("<", ">", "|", "="), "a NumPy dtype of unknown byte order")
        self.byteorder = state[1]

    def read(self, data: Any, count: int) -> np.ndarray:
        """`count` elements out of raw bytes, in native order."""
        dtype = np.dtype(self.name).newbyteorder(self.byteorder)
        _check(isinstance(data, bytes), "a NumPy value without bytes")
        _check(len(data) == count * dtype.itemsize, "a NumPy array of the wrong length")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


@dataclass(eq=False)
class NumpyArray:
    """A NumPy array that is being unpickled; `array` is set when its state has come."""

    array: np.ndarray | None = None

    def restore(self, state: Any) -> None:
        """Take `(version, shape, dtype, is_fortran, bytes)`."""
        _check(isinstance(state, tuple) and len(state) == 5, "a malformed NumPy array")
        _, shape, dtype, fortran, data = state
        _check(_counts(shape) and isinstance(dtype, NumpyDtype), "a malformed NumPy array")
        flat = dtype.read(data, math.prod(shape))
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _numpy_dtype(name: Any, *_: Any) -> NumpyDtype:
    plain = isinstance(name, str) and re.fullmatch(r"b1|[iuf][1248]|c(8|16)", name)
    _check(bool(plain) and name != "f1", "a NumPy dtype that is no plain number")
    return NumpyDtype(name)


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    _check(isinstance(dtype, NumpyDtype), "a NumPy scalar without a dtype")
    return dtype.read(data, 1)[0].item()


def _numpy_reconstruct(*_: Any) -> NumpyArray:
    return NumpyArray()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    _check(isinstance(text, str) and encoding in ("latin1", "latin-1"), "an odd byte string")
    return codecs.latin_1_encode(text)[0]


_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": _first,
    "numpy.dtype": _numpy_dtype,
    "_codecs.encode": _encode,
    **{
        f"numpy.{core}.multiarray.{name}": function
        for core in ("core", "_core")
        for name, function in (("scalar", _numpy_scalar), ("_reconstruct", _numpy_reconstruct))
    },
}

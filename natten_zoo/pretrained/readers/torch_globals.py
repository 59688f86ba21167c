"""What a torch checkpoint's pickle may build: tensors by reference, plain containers, NumPy values.

Every argument comes from the file and is checked. `KNOWN` has the functions by the names that the
pickle calls them by; all other names stay inert.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .pickle_machine import Global, PickleError

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
        return math.prod(self.shape) * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return np.dtype(READ_AS.get(dtype, dtype)).itemsize


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise PickleError(f"its pickle describes {what}")


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 32 and all(map(_count, value))


def build_storage(reference: Any) -> Storage:
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
    end = (last + 1) * itemsize(dtype) if math.prod(shape) else 0
    _check(
        end <= storage.count * itemsize(storage.dtype),
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


KNOWN: dict[str, Callable[..., Any]] = {
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

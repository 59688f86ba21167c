"""What a torch checkpoint's pickle may build: tensors by reference, plain containers, NumPy values.

Every argument comes from the file and is checked; what a function makes nothing of it refuses, and
the pickle goes on: it may be beside the weights. `KNOWN` has the functions by the names that the
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

from .budget import is_shape
from .inert import Foreign, Global, RefusedError, hashable

# Torch's storage classes and dtypes, and the NumPy dtype that their bytes are read as.
_STORAGES = {
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
STORAGES = {
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": "uint8",
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
    def where(self) -> tuple[Any, ...]:
        """The same for all references to one view."""
        return self.storage.key, self.dtype, self.offset, self.shape, self.stride

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it is contiguous."""
        return math.prod(self.shape) * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return np.dtype(READ_AS.get(dtype, dtype)).itemsize


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


def _check_built(value: Any, kind: type, otherwise: str) -> None:
    """Refuse what is no `kind`; if it was refused itself, for the same reason."""
    reason = value.reason if isinstance(value, Foreign) else ""
    _check(isinstance(value, kind), reason or otherwise)


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
    _check(kind.name in STORAGES, f"a storage of type {kind.name}, which MLX does not know")
    return Storage(key, STORAGES[kind.name], count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str) -> TensorRef:
    _check_built(storage, Storage, "a tensor without a storage")
    _check(_count(offset) and _counts(shape) and _counts(stride), "a tensor of impossible shape")
    _check(len(shape) == len(stride), "a tensor with more sizes than strides, or fewer")
    _check(is_shape(shape), f"a tensor of shape {shape}, whose axes MLX cannot count")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    end = (last + 1) * itemsize(dtype) if math.prod(shape) else 0
    _check(
        end <= storage.count * itemsize(storage.dtype),
        f"a tensor of shape {shape} that reaches past the end of its storage",
    )
    return TensorRef(storage, dtype, offset, shape, stride)


def _rebuild_tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    _check_built(storage, Storage, "a tensor without a storage")
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


def _rebuild_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a subclass, or one that has attributes: the tensor that it is."""
    known = isinstance(function, Global) and function.build in _TENSORS
    _check(known and isinstance(arguments, tuple), "a tensor of an unknown kind")
    return function.build(*arguments)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    _check(isinstance(pairs, (list, tuple)), "a dict made of something else than pairs")
    _check(all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs), "a malformed dict")
    return {hashable(key): value for key, value in pairs}


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

    def check(self, data: Any, count: int) -> np.dtype:
        """The dtype, if `data` holds `count` elements of it."""
        dtype = np.dtype(self.name).newbyteorder(self.byteorder)
        _check(isinstance(data, (bytes, bytearray)), "a NumPy value without bytes")
        _check(len(data) == count * dtype.itemsize, "a NumPy array of the wrong length")
        return dtype


@dataclass(eq=False)
class NumpyArray:
    """A NumPy array that is being unpickled, its bytes where they are until they are asked for.

    Attributes:
        reason: Why it cannot be read, if so.
    """

    reason: str = "a NumPy array without contents"
    _shape: tuple[int, ...] = ()
    _dtype: np.dtype | None = None
    _order: Literal["C", "F"] = "C"
    _data: bytes = b""

    def restore(self, state: Any) -> None:
        """Take `(version, shape, dtype, is_fortran, bytes)`."""
        _check(isinstance(state, tuple) and len(state) == 5, "a malformed NumPy array")
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, "F" if fortran else "C", data)

    def fill(self, shape: Any, dtype: Any, order: Literal["C", "F"], data: Any) -> None:
        """Take the contents."""
        _check_built(dtype, NumpyDtype, "a malformed NumPy array")
        _check(_counts(shape), "a malformed NumPy array")
        self._dtype = dtype.check(data, math.prod(shape))
        _check(is_shape(shape), f"a NumPy array of shape {shape}, whose axes MLX cannot count")
        self._shape, self._order, self._data, self.reason = shape, order, data, ""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return len(self._data)

    @property
    def array(self) -> np.ndarray:
        """The array, in native order.

        Raises:
            RefusedError: There is none.
        """
        if self._dtype is None or self.reason:
            raise RefusedError(self.reason)
        flat = np.frombuffer(self._data, self._dtype).astype(self._dtype.newbyteorder("="))
        return flat.reshape(self._shape, order=self._order)


def _numpy_dtype(name: Any, *_: Any) -> NumpyDtype:
    plain = isinstance(name, str) and re.fullmatch(r"b1|[iuf][1248]|c(8|16)", name)
    _check(bool(plain) and name != "f1", "a NumPy dtype that is no plain number")
    return NumpyDtype(name)


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    _check_built(dtype, NumpyDtype, "a NumPy scalar without a dtype")
    return np.frombuffer(data, dtype.check(data, 1))[0].item()


def _numpy_reconstruct(*_: Any) -> NumpyArray:
    return NumpyArray()


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NumpyArray:
    """How protocol 5 writes arrays."""
    _check(order in ("C", "F"), "a NumPy array of unknown order")
    array = NumpyArray()
    array.fill(shape, dtype, order, data)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    _check(isinstance(text, str) and encoding in ("latin1", "latin-1"), "an odd byte string")
    return codecs.latin_1_encode(text)[0]


_TENSORS = (_rebuild_tensor_v2, _rebuild_tensor_v3, _rebuild_parameter)

KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": _size,
    "torch.device": _first,
    "numpy.dtype": _numpy_dtype,
    "_codecs.encode": _encode,
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in (
            ("multiarray.scalar", _numpy_scalar),
            ("multiarray._reconstruct", _numpy_reconstruct),
            ("numeric._frombuffer", _numpy_from_buffer),
        )
    },
}

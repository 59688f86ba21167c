"""Reads safetensors files, after checking that the header tells the truth about the file."""

from __future__ import annotations

import math
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from .budget import is_shape, parse_json
from .errors import CheckpointError

MAX_HEADER = 100_000_000  # the format's own limit
ITEMSIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}


def read_safetensors(path: str | PathLike[str]) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Read a safetensors file.

    The arrays are lazy: MLX reads each from the file when it is evaluated.

    Args:
        path: The file.

    Returns:
        The arrays by name, and the header's `__metadata__`.

    Raises:
        CheckpointError: If the header is malformed or does not fit the file.
    """
    metadata = check_header(path)
    try:
        weights = cast(dict[str, mx.array], mx.load(fspath(path), format="safetensors"))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(path, f"MLX cannot read it ({error})") from error
    return weights, metadata


def check_header(path: str | PathLike[str]) -> dict[str, str]:
    """Check that every tensor's dtype, shape and offsets fit each other and the file.

    Returns:
        The header's `__metadata__`.

    Raises:
        CheckpointError: If they do not.
    """
    header, data_size = _read_header(path)
    # MLX writes null where there are none.
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    plain = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not plain:
        raise CheckpointError(path, "its header's __metadata__ is no map of strings")
    spans = sorted(_span(path, name, entry) for name, entry in header.items())
    position = 0
    for begin, end, name in spans:
        if begin != position:
            what = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise CheckpointError(path, f"tensor {name!r} {what}")
        position = end
    if position != data_size:
        raise CheckpointError(
            path, f"its header describes {position} bytes of data but the file has {data_size}"
        )
    return metadata


def _read_header(path: str | PathLike[str]) -> tuple[dict[str, Any], int]:
    file_size = Path(path).stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or not 2 <= length <= file_size - 8:
            raise CheckpointError(
                path, f"it is truncated or no safetensors file (header of {length} bytes)"
            )
        if length > MAX_HEADER:
            raise CheckpointError(path, f"its header takes {length} bytes, more than {MAX_HEADER}")
        text = file.read(length)
    header = parse_json(path, text, file_size, "its header is ", _unique)
    return header, file_size - 8 - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that comes twice: two readers could see two different tensors."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _span(path: str | PathLike[str], name: str, entry: Any) -> tuple[int, int, str]:
    """Check one tensor's entry; return where its bytes begin and end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"its header's entry for {name!r} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise CheckpointError(path, f"tensor {name!r} has dtype {dtype!r}, which MLX cannot load")
    if not (is_shape(shape) and _offsets(offsets)):
        raise CheckpointError(path, f"tensor {name!r} has an impossible shape or offsets")
    begin, end = offsets
    expected = math.prod(shape) * ITEMSIZE[dtype]
    if end - begin != expected:
        raise CheckpointError(
            path, f"tensor {name!r} of {dtype}{shape} needs {expected} bytes but has {end - begin}"
        )
    return begin, end, name


def _offsets(value: Any) -> bool:
    sizes = isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)
    return sizes and len(value) == 2

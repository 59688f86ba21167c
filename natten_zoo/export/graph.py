"""What stands in a function's file: its operations, and where they run.

MLX records on a machine without a GPU too, custom kernels on a placeholder for the GPU's stream,
which the machine that reads the file puts one of its own in place of. All other operations are
recorded for the CPU there: `place_on_gpu` moves them to the same placeholder. Each operation of the
file is its stream (index, type and number of the device, int32 each), the length of its name
(int64) and its name; a kernel's text and launch follow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

Trace = Sequence[dict[str, Any]]  # the operations of a function, as MLX recorded them

CPU_STREAM, GPU_STREAM = struct.pack("<iii", 0, 0, 0), struct.pack("<iii", -1, 1, 0)


class KernelCall(NamedTuple):
    """A custom kernel as a file has it.

    Attributes:
        name: With its template arguments and the types of its arrays.
        source: All of its Metal text, signature included.
        grid: Threads.
        threadgroup: Threads of a threadgroup.
    """

    name: str
    source: str
    grid: tuple[int, ...]
    threadgroup: tuple[int, ...]


def check_stream(op: str) -> None:
    """Raises a `RuntimeError` in a thread whose CPU stream has not the number that files name.

    MLX numbers the streams of all threads in the order of their first use, writes the numbers into
    files, and reads only those that the reading thread has.
    """
    stream = str(mx.default_stream(mx.cpu))
    if not mx.metal.is_available() and not stream.endswith(", 0)"):
        raise RuntimeError(
            f"[{op}] must be called in the thread that used MLX first in this process: a file "
            f"names its stream, and this thread has another one, {stream}."
        )


def operations(function: Callable[..., Any], inputs: Sequence[mx.array]) -> Trace:
    """What `mx.export_function` records of a function, in order; nothing is computed."""
    recorded: list[dict[str, Any]] = []
    mx.export_function(recorded.append, function, *inputs)
    return [entry for entry in recorded if entry["type"] == "primitive"]


def kernels(traces: Sequence[Trace]) -> list[KernelCall]:
    """The custom kernels among recorded operations."""
    calls = []
    for entry in (entry for trace in traces for entry in trace if entry["name"] == "CustomKernel"):
        name, source, *launch = entry["arguments"]
        calls.append(KernelCall(name, source, tuple(launch[:3]), tuple(launch[3:6])))
    return calls


def read_kernels(path: Path) -> list[KernelCall]:
    """The custom kernels in a file, in order: its bytes are read, not what was recorded."""
    content, calls = path.read_bytes(), []
    for at in _find(content, ["CustomKernel"]):
        _, at = _text(content, at + len(GPU_STREAM))
        name, at = _text(content, at)
        source, at = _text(content, at)
        launch = struct.unpack_from("<6i", content, at)
        calls.append(KernelCall(name, source, launch[:3], launch[3:]))
    return calls


def place_on_gpu(path: Path, traces: Sequence[Trace]) -> None:
    """Moves all operations of a file that was recorded without a GPU to the GPU's placeholder.

    Args:
        path: The file.
        traces: What was recorded.

    Raises:
        RuntimeError: The file has not as many: this MLX writes files of another form.
    """
    _move(path, traces, GPU_STREAM)


def place_on_cpu(path: Path, traces: Sequence[Trace]) -> None:
    """The way back: MLX reads a file only where its streams can be had."""
    _move(path, traces, CPU_STREAM)


def _move(path: Path, traces: Sequence[Trace], stream: bytes) -> None:
    names = [entry["name"] for trace in traces for entry in trace]
    content = bytearray(path.read_bytes())
    found = list(_find(content, names))
    if len(found) != len(names):
        running = mx.__version__  # type: ignore[attr-defined]
        raise RuntimeError(
            f"[export_model] {len(found)} operations were found in a file of {len(names)}: MLX "
            f"{running} writes files of another form. Export on a Mac, or for the CPU."
        )
    for at in found:
        content[at : at + len(stream)] = stream
    path.write_bytes(content)


def _find(content: bytes | bytearray, names: Sequence[str]) -> Iterator[int]:
    """Where operations of some names stand in a file, from their streams on."""
    streams = b"|".join(map(re.escape, (CPU_STREAM, GPU_STREAM)))
    known = b"|".join(
        re.escape(struct.pack("<q", len(name)) + name.encode()) for name in sorted(set(names))
    )
    for match in re.finditer(b"(?:%b)(?:%b)" % (streams, known), content):
        yield match.start()


def _text(content: bytes, at: int) -> tuple[str, int]:
    """A text behind its length, and where it ends."""
    (length,) = struct.unpack_from("<q", content, at)
    return content[at + 8 : at + 8 + length].decode(), at + 8 + length

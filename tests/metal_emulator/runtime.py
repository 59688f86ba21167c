"""The compiled runtime seen from Python: its structs, and one launch of a compiled kernel."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import build
from .launches import Counts, Report

NEW_MEMORY = 0xFF  # outputs start as NaN
COARSEST_GRANULE = 4  # bytes that share a shadow cell, unless a kernel touches less at once


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
        ("shift", ctypes.c_uint32),
        ("start", ctypes.c_uint64),
    ]


class _Counts(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_uint64) for field in dataclasses.fields(Counts)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("granule", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("threadgroup_limit", ctypes.c_uint32),
        ("reconverges", ctypes.c_uint32),
        ("tensor_layout", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("counts", _Counts),
        ("threadgroup_bytes", ctypes.c_uint32),
        ("needed_granule", ctypes.c_uint32),
        ("aborted", ctypes.c_uint32),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("place", ctypes.c_char_p),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Memory:
    """A buffer of a launch.

    `initialised` is about outputs: whether they start with a value. `shift` is about inputs: an
    array that begins inside another one lies that many bytes after an address of full alignment.
    `start` is where the kernel's pointer points: not to the first byte if strides are negative.
    """

    name: str
    data: np.ndarray  # contiguous
    writable: bool = False
    initialised: bool = True
    shift: int = 0
    start: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a launch left behind."""

    outputs: list[np.ndarray]
    counts: Counts
    threadgroup_bytes: int
    reports: tuple[Report, ...]
    seconds: float
    aborted: bool  # by a fault that nothing can follow


_one_at_a_time = threading.Lock()
_granules: dict[Path, int] = {}  # what a kernel was found to need


@functools.cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.build_runtime()), mode=ctypes.RTLD_GLOBAL)
    library.msl_report.restype = _Report
    return library


@functools.cache
def _entry(library: Path) -> int:
    _runtime()  # kernels find the runtime's functions among the global symbols
    return ctypes.cast(ctypes.CDLL(str(library)).msl_entry, ctypes.c_void_p).value or 0


def run(
    library: Path,
    memory: Sequence[Memory],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    *,
    checked: bool,
    order: int,
    seed: int,
    threadgroup_limit: int,
    reconverges: bool,
    tensor_layout: int,
) -> Outcome:
    """Launches the kernel of a library over a grid of threads."""
    entry = _entry(library)
    with _one_at_a_time:
        granule = _granules.setdefault(library, COARSEST_GRANULE)
        while granule:
            _granules[library] = granule
            buffers = _place(memory)
            launch = _Launch(
                entry=entry,
                buffers=buffers,
                buffer_count=len(memory),
                checked=checked,
                granule=granule,
                order=order,
                seed=seed,
                threadgroup_limit=threadgroup_limit,
                reconverges=reconverges,
                tensor_layout=tensor_layout,
                grid=tuple(grid),
                group=tuple(threadgroup),
            )
            started = time.perf_counter()
            _runtime().msl_launch(ctypes.byref(launch))
            seconds = time.perf_counter() - started
            granule = launch.needed_granule
        outputs = [_copy_out(b, m) for b, m in zip(buffers, memory, strict=True) if m.writable]
        counts = Counts(
            **{f.name: getattr(launch.counts, f.name) for f in dataclasses.fields(Counts)}
        )
        found = _reports(library)
        return Outcome(
            outputs, counts, launch.threadgroup_bytes, found, seconds, bool(launch.aborted)
        )


def _place(memory: Sequence[Memory]) -> ctypes.Array[_Buffer]:
    buffers = (_Buffer * len(memory))(
        *(
            _Buffer(0, m.data.nbytes, m.name.encode(), m.writable, m.initialised, m.shift, m.start)
            for m in memory
        )
    )
    _runtime().msl_place_buffers(buffers, len(memory))
    for buffer, m in zip(buffers, memory, strict=True):
        if m.initialised:
            ctypes.memmove(buffer.address, m.data.ctypes.data, m.data.nbytes)
        else:
            ctypes.memset(buffer.address, NEW_MEMORY, m.data.nbytes)
    return buffers


def _copy_out(buffer: _Buffer, memory: Memory) -> np.ndarray:
    out = np.empty_like(memory.data)
    ctypes.memmove(out.ctypes.data, buffer.address, out.nbytes)
    return out


def _reports(library: Path) -> tuple[Report, ...]:
    raw = [_runtime().msl_report(i) for i in range(_runtime().msl_report_count())]
    addresses = sorted({pc for r in raw for pc in (r.pc, r.other_pc) if pc})
    places = build.symbolize(library, addresses)
    reports = []
    for r in raw:
        other = f" at {places.get(r.other_pc, '?')}" if r.other_pc else ""
        place = places.get(r.pc, "?") if r.pc else r.place.decode()
        reports.append(Report(r.kind.decode(), r.message.decode() + other, place, r.count))
    return tuple(reports)

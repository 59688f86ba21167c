"""The GPU that launches are planned for, as data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from platform import mac_ver
from typing import NamedTuple

import mlx.core as mx

from ...metal import HOPPER, MATRIX, MATRIX_M1, NAX, SCALAR_4, SCALAR_8, TENSORS, Core
from ..neighborhood import kept_hash

# Multiply-adds of rows that take a quarter of a second on the slowest Mac, an M1 of 7 cores of 128
# lanes at 1.278 GHz: of their time the model of docs/kernels.md sees this much spent on them, at
# least, if a row has BESIDE_KEYS more keys than it sees, for all that it takes beside them.
SHARE, BESIDE_KEYS = 0.29, 24
QUARTER_SECOND = 0.25 * SHARE * 7 * 128 * 1.278e9


class Processor(NamedTuple):
    """What the threadgroups of one of a GPU's processors share.

    Attributes:
        registers: Of 32 bits.
        memory_bytes: Of threadgroup memory.
        spare_bytes: Of it, that serve better as a cache where windows are small.
        reserved_bytes: How much of it each threadgroup costs beside its own.
    """

    registers: int
    memory_bytes: int
    spare_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class Device:
    """All that a plan depends on beside its problem; hashable. Plans are cached by it.

    Attributes:
        platform: The tier that MLX has a back-end for: `"fast_metal"`, `"cuda"`, or None, where
            plans are those of Metal.
        generation: Of the GPU, as MLX calls its architecture, such as `"applegpu_g16s"`; empty
            where unknown.
        cores: Who can multiply here, in the order of preference; the last can serve every launch.
        longest_launch: Multiply-adds of rows that a launch may have; longer ones are cut up.
        core: One of them that multiplies wherever it can. None: the best for each launch.
        enough_threadgroups: That keep the whole GPU busy.
        slab_bytes: Of threadgroup memory, for the keys and values that a threadgroup holds at once.
        memory_bytes: Of threadgroup memory that any threadgroup can have.
        processor: What threadgroups share, where they are laid out by it (`Processor`).
    """

    platform: str | None
    generation: str
    cores: tuple[Core, ...]
    enough_threadgroups: int
    slab_bytes: int
    memory_bytes: int
    longest_launch: float = math.inf
    core: Core | None = None
    processor: Processor | None = None

    @property
    def apple_generation(self) -> int:
        """Of Apple's GPUs, as 13 of `"applegpu_g13s"`, which is an M1's; 0 of all others."""
        found = re.match(r"applegpu_g(\d+)", self.generation)
        return int(found[1]) if found else 0

    __hash__ = kept_hash


_used: ContextVar[Device | None] = ContextVar("natten_zoo_device", default=None)


def current() -> Device:
    """The device that launches are planned for here: `use_device`'s, or this machine's."""
    return _used.get() or machine(platform())


@contextmanager
def use_device(device: Device) -> Iterator[Device]:
    """Plans for a device in a `with` block, in this thread or task alone."""
    token = _used.set(device)
    try:
        yield device
    finally:
        _used.reset(token)


@contextmanager
def use_core(core: Core | None) -> Iterator[Device]:
    """Has one core multiply wherever it can (None: the best for each launch), to compare them."""
    with use_device(replace(current(), core=core)) as device:
        yield device


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU: asked at every call, and in the quickest way."""
    return mx.default_device().type is mx.DeviceType.gpu


def platform() -> str | None:
    """The tier that MLX has a back-end for here: `"fast_metal"`, `"cuda"` or None."""
    if mx.metal.is_available():
        return "fast_metal"
    cuda = getattr(mx, "cuda", None)
    return "cuda" if cuda is not None and cuda.is_available() else None


@cache
def machine(platform: str | None) -> Device:
    """The GPU of this machine.

    Slabs are such that three threadgroups share the 60 KB of threadgroup memory of each of an Apple
    GPU's processors. On an NVIDIA GPU the registers decide how many share the 228 KB.
    """
    if platform == "cuda":
        return Device(
            platform,
            _generation(),
            cores=(HOPPER, *TENSORS) if _generation() == "sm_90" else TENSORS,
            enough_threadgroups=256,
            slab_bytes=36 * 1024,
            memory_bytes=48 * 1024,
            processor=Processor(64 * 1024, 227 * 1024, 31 * 1024, 1024),
        )
    return Device(
        platform,
        _generation(),
        cores=(
            *([NAX] if has_accelerators(_generation(), _macos()) else []),
            *(SCALAR_4, SCALAR_8, MATRIX if has_bfloat(_generation()) else MATRIX_M1),
        ),
        enough_threadgroups=128,
        slab_bytes=19 * 1024,
        memory_bytes=32 * 1024,
        longest_launch=QUARTER_SECOND,
    )


def has_bfloat(generation: str) -> bool:
    """Whether an Apple GPU computes with bfloat16: from the M3 on, whose architecture is g15."""
    found = re.match(r"applegpu_g(\d+)", generation)
    return found is None or int(found[1]) >= 15


def has_accelerators(generation: str, macos: tuple[int, ...]) -> bool:
    """Whether an Apple GPU has neural accelerators that kernels reach: an M5's, from macOS 26.2 on.

    Its architecture is g17, that of a phone with them g18; MLX's own kernels ask for the same.
    """
    found = re.match(r"applegpu_g(\d+)(\w?)", generation)
    first = 18 if found and found[2] == "p" else 17
    return found is not None and int(found[1]) >= first and macos >= (26, 2)


def _macos() -> tuple[int, ...]:
    """The version of macOS; empty elsewhere."""
    return tuple(int(n) for n in mac_ver()[0].split(".") if n.isdigit())


def _generation() -> str:
    try:
        return str(mx.device_info(mx.Device(mx.gpu)).get("architecture", ""))
    except (RuntimeError, ValueError):  # there is no GPU
        return ""

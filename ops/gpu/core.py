"""Who multiplies in a launch: which core, and how many simdgroups a team has for its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from ...metal import Core
from ..problem import Problem
from .device import Device

AT_ONCE = 8  # channels of a row that a lane had better not exceed: 16 bytes of float16
FEW_KEYS = 32  # a fragment of neural accelerators has as many
SMALL_GROUP = 128  # threads, where threadgroups are laid out by what their processor has
MOST_UNROLLED = 128  # channels of a simdgroup: its loops over them are written out
TEAMS_IN_STEP = 2  # of parts: more of them wait for each other
PART_REGISTERS = 12  # that parts take themselves (scripts/registers.py)
WIDEST_PART = 256  # bytes of a row of more than 128 channels, on tensor cores


@dataclass(frozen=True)
class Held:
    """What a kernel holds of each row in registers.

    Attributes:
        arrays: In the dtype of the problem.
        sums: In float32.
        pairs: Arrays of a number for each row and token of a fragment.
        registers: Of 32 bits, that a lane has for them beside all else, where teams are of a few
            lanes and four rows,
        registers_3d: and in 3-D, where there is more of that (scripts/registers.py).
        whole: The same where teams are whole simdgroups, and rows that take more are shared out,
        whole_3d: and in 3-D.
    """

    arrays: int
    sums: int
    pairs: int
    registers: int = 0
    registers_3d: int = 0
    whole: int = 64
    whole_3d: int = 64

    def channels(self, problem: Problem) -> int:
        """How many of a row a lane has registers for."""
        registers = self.registers_3d if problem.rank == 3 else self.registers
        held = self.arrays * problem.dtype.size + self.sums * 4
        return min(registers // held, AT_ONCE)

    def row_bytes(self, dtype: mx.Dtype, dim: int) -> int:
        """Of all arrays and sums of rows with `dim` channels."""
        return (self.arrays * dtype.size + self.sums * 4) * dim

    def fits(self, problem: Problem, dim: int, core: Core) -> bool:
        """Whether a lane of a whole simdgroup has registers for its share of rows."""
        room = self.whole_3d if problem.rank == 3 else self.whole
        room -= PART_REGISTERS if core.parts > 1 else 0
        return self.words(problem.dtype, dim, core) <= room

    def words(self, dtype: mx.Dtype, dim: int, core: Core) -> int:
        """Of each lane."""
        return self.row_bytes(dtype, core.padded(dim)) * core.rows // (4 * core.team_threads)


PRODUCT = Held(arrays=1, sums=1, pairs=1)  # what the separate products hold at most


def choose_core(
    device: Device, dtype: mx.Dtype, channels: int, dim: int, rows: int, volume: int
) -> Core:
    """Who multiplies.

    Teams of a few lanes do, where the rows of a team fit into their registers and a lane for each
    row keeps the GPU busy, and else teams of whole simdgroups.

    Args:
        device: Its `cores` are tried in their order.
        dtype: Of the arrays.
        channels: Of each row, how many a lane has registers for; 0 for kernels that write weights
            or sum them per relative position, which takes whole simdgroups.
        dim: Channels of a row.
        rows: Of all heads and samples.
        volume: Keys of a window. Where they are few, single lanes are better than wide fragments,
            which would be masked for the most part.
    """
    if device.core and device.core.takes(dtype) and (channels or device.core.whole):
        return device.core
    cores = [core for core in device.cores if core.takes(dtype)]
    for core in sorted(cores, key=lambda core: core.whole) if volume < FEW_KEYS else cores:
        fits = core.padded(dim) <= channels * core.lanes
        busy = rows >= device.enough_threadgroups * core.threads
        if core.whole or (fits and busy):
            return core
    raise ValueError(f"[choose_core] 'device' must have a core of whole simdgroups: {device}.")


def in_parts(problem: Problem, device: Device, core: Core, dim: int, held: Held) -> Core:
    """The core with teams of as many simdgroups as rows of `dim` channels need.

    Tensor cores sum the same bits in all passes if they sum the same channels: there the number
    depends on nothing that passes don't share.
    """
    if not core.whole or core.on_trial:  # whose pairs are too many to exchange
        return core
    wide = max(problem.head_dim, problem.value_dim)
    parted, most = core, SMALL_GROUP if device.processor else core.threads
    while parted.team_threads < most:
        if device.processor:
            enough = wide <= 128 or parted.parts * WIDEST_PART >= wide * problem.dtype.size
        else:
            few = parted.padded(dim) <= MOST_UNROLLED * parted.parts
            enough = few and held.fits(problem, dim, parted)
        if enough:
            break
        in_step = TEAMS_IN_STEP * 2 * parted.team_threads
        threads = min(in_step, core.threads) if device.processor else core.threads
        parted = replace(core, parts=2 * parted.parts, threads=threads)
    return parted

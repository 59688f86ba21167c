"""Which tiles the pure tier computes together, and in which order.

A call is cut into parts whose scores stay small. Parts are independent, and MLX would compute all
of them at once; an order token makes each wait for the one before it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..exports import export_target, runs_on_cpu

# Scores that are held at once: on a CPU they should stay in its cache.
CPU_SCORES, GPU_SCORES = 1 << 18, 1 << 24
# A CPU stream of MLX is one thread: parts take turns on this many, if they are worth a thread.
STREAMS, LEAST_SCORES = min(4, os.cpu_count() or 1), 3 << 13

# Arrays per query, arrays per key, gradients of scores.
PartResults = tuple[list[mx.array], list[mx.array], list[mx.array]]


@dataclass(frozen=True)
class Part:
    """Some heads and some tiles.

    Attributes:
        heads: Key/value heads, counted through all samples.
        tiles: Of each of these heads.
        order_token: A zero, known when the part before is computed: one part is held at a time.
        runs: Arrays per key as runs (`Tiles.keys`), shared by the parts of the same heads.
    """

    heads: slice
    tiles: slice
    order_token: mx.array
    runs: dict[int, mx.array]


class Turns:
    """Streams that parts take turns on, each with what it has computed last."""

    def __init__(self, streams: list[Any]) -> None:
        """The caller's own stream comes first, then `streams`."""
        self._streams = [None, *streams]
        self._tokens = [mx.array(0) for _ in self._streams]
        self._order = itertools.cycle(range(len(self._streams)))
        self._now = 0

    def advance(self) -> AbstractContextManager[Any]:
        """The next stream, to compute in."""
        self._now = next(self._order)
        stream = self._streams[self._now]
        return contextlib.nullcontext() if stream is None else mx.stream(stream)

    @property
    def token(self) -> mx.array:
        """The order token of what this stream computes next."""
        return self._tokens[self._now]

    def done(self, results: PartResults) -> None:
        """What this stream computes next waits for these arrays."""
        self._tokens[self._now] = order_token(results)


@dataclass(frozen=True)
class Schedule:
    """How a call is cut: heads and tiles of a part, and the streams besides the caller's."""

    heads: int
    tiles: int
    streams: list[Any]

    @classmethod
    def of(cls, heads: int, tiles: int, scores: int) -> Schedule:
        """For `heads` with `tiles` each, of `scores` each."""
        most, streams = GPU_SCORES, []
        if runs_on_cpu():
            total = min(CPU_SCORES, heads * tiles * scores)
            if export_target() is None:  # a file has one stream
                streams = more_streams()[: max(0, total // LEAST_SCORES - 1)]
            most = total // (1 + len(streams))
        return cls(max(1, most // (scores * tiles)), min(tiles, max(1, most // scores)), streams)


@functools.cache
def more_streams() -> list[Any]:
    """CPU streams beside the default one; every thread that uses them has its own."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(STREAMS - 1)]


def order_token(results: PartResults) -> mx.array:
    """An integer zero that is known only when some arrays are.

    Added to the indices of what is to come later, it orders computations as `mx.depends` does,
    which `mx.vmap` does not know.
    """
    firsts = [x[(0,) * x.ndim] for arrays in results for x in arrays]
    return sum(((x < 0) & (x > 0) for x in firsts), start=mx.array(0))  # never both: zero


def blocks(total: int, size: int) -> Iterator[slice]:
    """`[0, total)` in slices of `size`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

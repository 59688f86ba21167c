"""Who takes part in benchmark_ops.py: the tiers, a gather per query as baseline, an MLX peer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from natten_zoo import ops
from natten_zoo.ops.problem import Problem


@dataclass(frozen=True)
class Case:
    """One shape of the table."""

    name: str
    spatial: tuple[int, ...]
    heads: int
    kernel_size: int | tuple[int, ...] = 7
    dilation: int = 1
    is_causal: bool = False
    head_dim: int = 32

    @property
    def hood(self) -> ops.Neighborhood:
        return ops.Neighborhood.of(
            len(self.spatial), self.kernel_size, dilation=self.dilation, is_causal=self.is_causal
        )

    def problem(self, batch: int, dtype: mx.Dtype) -> Problem:
        d = self.head_dim
        return Problem(self.hood, batch, self.spatial, self.heads, self.heads, d, d, d**-0.5, dtype)

    def mask(self) -> np.ndarray:
        """`[tokens, tokens]`: whether a query sees a key."""
        mask = np.ones((1, 1), bool)
        for axis, length in enumerate(self.spatial):
            mask = np.kron(mask, self.hood.mask(axis, length))
        return mask

    def fused_multiply_adds(self) -> int:
        """Of one sample's forward: a logit and its share of the output per query and key."""
        pairs = 1
        for axis, length in enumerate(self.spatial):
            pairs *= int(self.hood.windows(axis, length)[1].sum())
        return pairs * self.heads * 2 * self.head_dim


Attention = Callable[[Any, Any, Any], Any]
TURN = 0.01  # seconds of timed calls


@dataclass
class Contestant:
    """`forward(q, k, v, d_out)`, and `backward` with it, evaluated before they return."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    arrays: list[Any]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"forward": [], "both": []})
    peak_bytes: int | None = None
    remark: str = ""

    def prepare(self) -> Contestant:
        """Compiles kernels and fills caches; who refuses a backward runs without, and says so."""
        self.forward(*self.arrays)
        try:
            self.backward(*self.arrays)
        except NotImplementedError as error:
            self.remark = str(error).partition(".")[0]
            del self.seconds["both"]
        return self

    def run(self) -> None:
        """One round: a turn of each function, whose first call finds the others' caches."""
        for key, turns in self.seconds.items():
            function = self.forward if key == "forward" else self.backward
            function(*self.arrays)
            start, calls, seconds = time.perf_counter(), 0, 0.0
            while seconds < TURN:
                function(*self.arrays)
                calls, seconds = calls + 1, time.perf_counter() - start
            turns.append(seconds / calls)


def mlx_contestant(name: str, attention: Attention, arrays: list[mx.array]) -> Contestant:
    """A contestant of an MLX function; measures its peak memory, too."""

    def forward(*arrays: mx.array) -> None:
        mx.eval(attention(*arrays[:3]))

    def backward(*arrays: mx.array) -> None:
        mx.eval(mx.vjp(lambda *qkv: [attention(*qkv)], list(arrays[:3]), [arrays[3]]))

    one = Contestant(name, forward, backward, arrays).prepare()
    mx.clear_cache()
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    backward(*arrays)
    one.peak_bytes = mx.get_peak_memory() - held
    return one


def gather(case: Case) -> Attention:
    """The baseline: copies the keys and values of each query."""
    index, seen = 0, True
    for axis, length in enumerate(case.spatial):
        first, count = case.hood.windows(axis, length)
        slots = np.arange(case.hood.kernel_size[axis])
        key = np.minimum(first[:, None] + slots * case.dilation, length - 1)
        inside = slots < count[:, None]
        shape = [1] * (2 * len(case.spatial))
        shape[axis], shape[axis + len(case.spatial)] = key.shape
        index = index * length + key.reshape(shape)
        seen = seen & inside.reshape(shape)
    volume = case.hood.volume
    places = mx.array(np.asarray(index).reshape(-1).astype(np.int32))
    masked = mx.array(np.where(seen, 0, -np.inf).reshape(-1, 1, 1, volume).astype(np.float32))

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        batch, *_, heads, dim = query.shape
        q, k, v = (x.flatten(1, -3) for x in (query, key, value))  # [B, N, H, D]
        k, v = (mx.take(x, places, axis=1) for x in (k, v))
        k, v = (x.reshape(batch, -1, volume, heads, dim).swapaxes(2, 3) for x in (k, v))
        logits = (q * dim**-0.5)[:, :, :, None] @ k.mT  # [B, N, H, 1, volume]
        if case.is_causal:
            logits = logits + masked.astype(logits.dtype)
        return (mx.softmax(logits, axis=-1, precise=True) @ v).reshape(query.shape)

    return attention


def tier(case: Case, name: str) -> Attention:
    """The operator of `natten_zoo`, forced to one tier."""
    function = (ops.na1d, ops.na2d, ops.na3d)[len(case.spatial) - 1]

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        with ops.use_backend(name):
            return function(query, key, value, case.kernel_size, 1, case.dilation, case.is_causal)

    return attention


def import_natten_mlx() -> Any:
    """The peer package, which is willing to be imported on macOS only but runs elsewhere, too."""
    with mock.patch.object(sys, "platform", "darwin"):
        import natten_mlx

    return natten_mlx


def natten_mlx(case: Case) -> Attention:
    """The peer's operator: its Metal kernels where there is Metal, else its MLX operations."""
    peer = import_natten_mlx()
    peer.set_backend("auto" if ops.has_metal() else "pure")
    function = getattr(peer, f"na{len(case.spatial)}d")
    return lambda q, k, v: function(q, k, v, case.kernel_size, 1, case.dilation, case.is_causal)

"""Which keys a query sees: the definition that every implementation of attention comes from.

A *query* is a token that attends, a *key* one that is attended to, and the *window* of a query is
the keys that it sees. What takes a `Neighborhood` and computes is in ops/functional.py.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from operator import ge
from types import ModuleType
from typing import Any

import numpy as np

IntOrInts = int | Sequence[int]
BoolOrBools = bool | Sequence[bool]
WHOLE = -1  # a kernel_size: all tokens of an axis


class TooSmallError(ValueError):
    """An input into which a window does not fit."""


def kept_hash(self: Any) -> int:
    """The hash of a frozen dataclass's fields, computed once: it is the key of many caches."""
    try:
        return self._hash  # type: ignore[no-any-return]
    except AttributeError:
        known = hash(tuple(getattr(self, field.name) for field in fields(self)))
        self.__dict__["_hash"] = known
        return known


@dataclass(frozen=True)
class Neighborhood:
    """A sliding window over the tokens of 1, 2 or 3 axes.

    Each axis is independent and the n-D neighborhood is the Cartesian product of its axes; their
    number is the neighborhood's *rank*. With dilation `d` the tokens `i` with equal `i % d`
    form a *dilation group*, in which `i // d` is the token's *ordinal*. A query sees the
    `kernel_size` ordinals of its group around its own, moved inwards at the borders so that their
    number stays `kernel_size`. On a causal axis it sees its own ordinal and the
    `kernel_size - 1` before it, fewer at the left border.

    Two strides exist and differ: `stride` keeps only the queries 0, s, 2s, ... (the output
    shrinks), `window_stride` has that many neighboring queries share the window of one of them,
    their *leader* (the output does not shrink; generalized neighborhood attention,
    https://arxiv.org/abs/2504.16922, named `stride` in NATTEN >= 0.20).

    Args:
        kernel_size: Keys per query and axis; even sizes have the extra key on the left. -1 is
            the whole axis, as in the configurations of NVIDIA's Cosmos, whatever its length: `on`
            says how many.
        dilation: Step between the keys of a window.
        stride: Step between the queries that are kept.
        window_stride: Queries that share one window; at most `kernel_size`.
        is_causal: Whether a query sees only keys up to itself.

    Every attribute is a tuple with one entry per axis. `of` broadcasts and validates; what
    takes a neighborhood, such as [`attend`][natten_zoo.ops.attend], relies on that.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    window_stride: tuple[int, ...]
    is_causal: tuple[bool, ...]

    __hash__ = kept_hash

    @classmethod
    def of(
        cls,
        rank: int,
        kernel_size: IntOrInts,
        dilation: IntOrInts = 1,
        stride: IntOrInts = 1,
        window_stride: IntOrInts = 1,
        is_causal: BoolOrBools = False,
        *,
        op: str = "Neighborhood",
    ) -> Neighborhood:
        """Builds the neighborhood of `rank` axes from single values or one value per axis.

        Args:
            rank: Number of axes.
            kernel_size: Of all axes, or one per axis. All that follows likewise, in the order of
                the attributes; better name it, for operators have other orders.
            dilation: See the attributes.
            stride: See the attributes; at most `kernel_size`.
            window_stride: See the attributes; at most `kernel_size`.
            is_causal: See the attributes.
            op: Who asks, for messages.

        Raises:
            TypeError: If a size is not an integer (bools are refused) or a flag not a bool.
            ValueError: If a size is below 1 and no `kernel_size` of -1, a sequence has another
                length than `rank`, a stride is larger than the kernel, or a whole axis dilated.
        """
        # Validation costs as much as a small forward pass; repr tells 1 from True and np.int64(1).
        key = repr((rank, kernel_size, dilation, stride, window_stride, is_causal))
        known = _known.get(key)
        if known is not None:
            return known
        one = cls(
            per_axis(op, "kernel_size", kernel_size, rank, or_whole=True),
            per_axis(op, "dilation", dilation, rank),
            per_axis(op, "stride", stride, rank),
            per_axis(op, "window_stride", window_stride, rank),
            flags_per_axis(op, "is_causal", is_causal, rank),
        )
        whole = [k == WHOLE for k in one.kernel_size]
        if any(w and d != 1 for w, d in zip(whole, one.dilation, strict=True)):
            raise ValueError(
                f"[{op}] 'dilation' must be 1 on axes that a window spans (kernel_size {WHOLE}) "
                f"but got {one.dilation}."
            )
        for name in ("stride", "window_stride"):
            steps = getattr(one, name)
            pairs = zip(steps, one.kernel_size, strict=True)
            if any(s > k != WHOLE for s, k in pairs):
                raise ValueError(
                    f"[{op}] '{name}' must not be larger than 'kernel_size' {one.kernel_size} "
                    f"on any axis but got {steps}."
                )
        if len(_known) < 4096:
            _known[key] = one
        return one

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.kernel_size)

    @property
    def volume(self) -> int:
        """Keys per query: the product of the kernel sizes, which must be known."""
        return math.prod(self._known_size())

    @cached_property
    def minimum_size(self) -> tuple[int, ...]:
        """The smallest length of each axis on which every window is whole."""
        sizes = (max(1, k) for k in self.kernel_size)
        return tuple(k * d for k, d in zip(sizes, self.dilation, strict=True))

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Relative positions per axis, `2 * kernel_size - 1`: the table of `rpb`."""
        return tuple(2 * k - 1 for k in self._known_size())

    def _known_size(self) -> tuple[int, ...]:
        if WHOLE in self.kernel_size:
            raise ValueError(
                f"[Neighborhood] 'kernel_size' must be known here but got {self.kernel_size}: "
                f"{WHOLE} stands for a whole axis, whose length depends on the input."
            )
        return self.kernel_size

    def on(self, size: Sequence[int], op: str = "Neighborhood") -> Neighborhood:
        """The same neighborhood with axes that a window spans counted: `size` tokens per axis.

        Raises:
            ValueError: If a stride is larger than such an axis.

        Examples:
            >>> Neighborhood.of(2, (-1, 3)).on((8, 9)).kernel_size
            (8, 3)
        """
        if WHOLE not in self.kernel_size:
            return self
        pairs = zip(self.kernel_size, size, strict=True)
        return Neighborhood.of(
            self.rank,
            tuple(n if k == WHOLE else k for k, n in pairs),
            self.dilation,
            self.stride,
            self.window_stride,
            self.is_causal,
            op=op,
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Queries per axis that `stride` keeps of `size` tokens."""
        return tuple(-(-n // s) for n, s in zip(size, self.stride, strict=True))

    def covers(self, size: Sequence[int]) -> bool:
        """Whether every query sees every token of `size`: plain self-attention."""
        whole = tuple(size) == self.kernel_size
        return whole and not any(self.is_causal) and all(d == 1 for d in self.dilation)

    def fits(self, size: Sequence[int]) -> bool:
        """Whether every window is whole in `size` tokens, one number per axis."""
        return all(map(ge, size, self.minimum_size))

    def check_size(self, size: Sequence[int], op: str) -> None:
        """Raises a `TooSmallError` when a window does not fit into `size` tokens."""
        if not self.fits(size):
            raise TooSmallError(
                f"[{op}] 'kernel_size' * 'dilation' must fit into the input on every axis but got "
                f"kernel_size {self.kernel_size} and dilation {self.dilation} for an input of "
                f"{tuple(size)}; the smallest input that works is {self.minimum_size}."
            )

    def window(self, axis: int, query: Any, length: Any, xp: ModuleType = np) -> tuple[Any, Any]:
        """The window of a query on one axis, in closed form.

        Args:
            axis: The axis, from 0.
            query: Token index of the query, an integer or an array.
            length: Tokens on the axis, an integer or an array that broadcasts with `query`.
                Where a dilation group is shorter than the kernel its window is the whole group.
            xp: `numpy` or `mlx.core`, whichever `query` belongs to.

        Returns:
            `(first, count)`: the query sees the keys `first + t * dilation` with `t < count`.
        """
        k, d, s = self.kernel_size[axis], self.dilation[axis], self.window_stride[axis]
        group, ordinal = query % d, query // d
        n = length // d + (group < length % d)  # tokens of the dilation group
        # The ordinal of the query whose window s neighbors share:
        if self.is_causal[axis]:
            leader = xp.minimum(ordinal // s * s + s - 1, n - 1)  # the last of them
            start = xp.maximum(leader - (k - 1), 0)
            count = xp.minimum(ordinal + 1, n) - start
        else:
            leader = xp.minimum(ordinal // s * s + s // 2, n - 1)  # the one in the middle
            start = xp.maximum(xp.minimum(leader - k // 2, n - k), 0)
            count = xp.minimum(k, n)
        return start * d + group, count

    def keys(self, axis: int, query: int, length: int) -> np.ndarray:
        """The keys that a query sees on one axis, in their order.

        Examples:
            >>> Neighborhood.of(1, 3, dilation=2).keys(0, query=4, length=9).tolist()
            [2, 4, 6]
        """
        first, count = self.window(axis, query, length)
        return int(first) + self.dilation[axis] * np.arange(count)

    def windows(self, axis: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`(first, count)` of every kept query on one axis, each `[ceil(length / stride)]`."""
        return _windows(self, axis, length)

    def mask(self, axis: int, length: int) -> np.ndarray:
        """`[queries, keys]` on one axis: whether the kept query sees the key."""
        first, count = self.windows(axis, length)
        step, offset = np.divmod(np.arange(length) - first[:, None], self.dilation[axis])
        seen: np.ndarray = (offset == 0) & (step >= 0) & (step < count[:, None])
        return seen


_known: dict[str, Neighborhood] = {}


@lru_cache(maxsize=256)
def _windows(hood: Neighborhood, axis: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    queries = np.arange(0, length, hood.stride[axis])
    first, count = hood.window(axis, queries, length)
    count = np.broadcast_to(count, queries.shape).copy()
    first.setflags(write=False)
    count.setflags(write=False)
    return first, count


def per_axis(
    op: str, name: str, value: IntOrInts, rank: int, *, or_whole: bool = False
) -> tuple[int, ...]:
    """One positive integer (or `WHOLE`) per axis from an integer or a sequence of `rank`."""
    values = [value] * rank if isinstance(value, numbers.Integral) else _sequence(op, name, value)
    for v in values:
        if isinstance(v, (bool, np.bool_)) or not isinstance(v, numbers.Integral):
            raise TypeError(
                f"[{op}] '{name}' must be an integer or one integer per axis but got {value!r}."
            )
    if len(values) != rank:
        raise ValueError(f"[{op}] '{name}' must have {rank} entries but got {value!r}.")
    if any(v < 1 and not (or_whole and v == WHOLE) for v in values):
        also = f", or {WHOLE} for a whole axis," if or_whole else ""
        raise ValueError(
            f"[{op}] '{name}' must be at least 1{also} on every axis but got {value!r}."
        )
    return tuple(int(v) for v in values)


def flags_per_axis(op: str, name: str, value: BoolOrBools, rank: int) -> tuple[bool, ...]:
    """One bool per axis from a bool or a sequence of `rank` bools."""
    flat = isinstance(value, (bool, np.bool_))
    values = [value] * rank if flat else _sequence(op, name, value)
    if any(not isinstance(v, (bool, np.bool_)) for v in values):
        raise TypeError(f"[{op}] '{name}' must be a bool or one bool per axis but got {value!r}.")
    if len(values) != rank:
        raise ValueError(f"[{op}] '{name}' must have {rank} entries but got {value!r}.")
    return tuple(bool(v) for v in values)


def _sequence(op: str, name: str, value: Any) -> list[Any]:
    several = isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if isinstance(value, (str, bytes)) or not several:
        raise TypeError(f"[{op}] '{name}' must be one value or one per axis but got {value!r}.")
    return list(value)

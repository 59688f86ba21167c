"""What a tier is: its face, what it says that it can do, and the face of those that launch by name.

A tier is a module of this folder that `Tier` describes: `pure`, `gpu` or `native`.
Nothing here imports one; ops/backend.py chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol

import mlx.core as mx

from .neighborhood import Neighborhood
from .problem import DTYPES, Problem

# What any problem has. All else is a feature, which a tier has to name before it is asked for it.
BASIC = frozenset(("neighborhood", "kernel_size", "batch", "spatial", "heads", "kv_heads"))
BASIC |= {"head_dim", "value_dim", "scale", "dtype", "has_lse"}


@dataclass(frozen=True, eq=False)
class Support:
    """What a tier can compute. Problems that ask for more are refused: see `why_not`.

    Attributes:
        features: Names of the fields of `Problem` and `Neighborhood` beyond
            `BASIC` that it honors. One that is not named may only have its default.
        dtypes: Of the arrays.
        limits: The largest values of attributes of a problem, by name.
    """

    features: frozenset[str]
    dtypes: tuple[mx.Dtype, ...] = DTYPES
    limits: tuple[tuple[str, int], ...] = ()

    def why_not(self, problem: Problem) -> str | None:
        """What a problem asks for that is missing here; None if nothing."""
        return _why_not(self, problem)


@lru_cache(maxsize=4096)
def _why_not(support: Support, problem: Problem) -> str | None:
    for name in _asked(problem):
        if name not in support.features:
            return f"it does not support {name!r}"
    if problem.dtype not in support.dtypes:
        return f"it does not support {problem.dtype}"
    for name, limit in support.limits:
        if getattr(problem, name) > limit:
            return f"{name} is larger than {limit}"
    return None


def _asked(problem: Problem) -> Iterator[str]:
    """The fields of a problem and of its neighborhood that are not as if they were not there."""
    hood = problem.neighborhood
    plain = Neighborhood.of(hood.rank, hood.kernel_size)
    for field in fields(hood):
        default = getattr(plain, field.name, field.default)
        if field.name not in BASIC and getattr(hood, field.name) != default:
            yield field.name
    for field in fields(problem):
        if field.name not in BASIC and getattr(problem, field.name) != field.default:
            yield field.name


class KernelError(RuntimeError):
    """A kernel that this device cannot build or run."""


# Of (arrays, rpb, lengths) the results of one function of a tier, in its order, with d_rpb last and
# only where there is an rpb; and the same of any function, by its name and problem.
Run = Callable[[Sequence[mx.array], "mx.array | None", "mx.array | None"], list[mx.array]]
Launch = Callable[
    [str, Problem, Sequence[mx.array], "mx.array | None", "mx.array | None"], list[mx.array]
]


class Tier(Protocol):
    """The face of a tier. `Problem` tells the shapes; gradients come in their arrays' dtype.

    Attributes:
        NAME: As [`set_backend`][natten_zoo.ops.set_backend] takes it.
        SUPPORT: What it can compute. It is asked for nothing else.
    """

    NAME: str
    SUPPORT: Support

    def __hash__(self) -> int:
        """Functions are cached by their tier."""

    def why_not(self, problem: Problem) -> str | None:
        """Why it cannot run a problem that it supports here and now; None if it can."""

    def why_dense(self, problem: Problem) -> str | None:
        """Why MLX's own attention to all keys is taken for a problem instead; None if it is not.

        It is asked only where that can compute the problem (`dense.why_not`).
        """

    def differentiable(self, op: str, problem: Problem) -> Run | None:
        """A function whose results carry their gradients, None if ops/autograd.py has the rules.

        Args:
            op: `"forward"`, `"qk"` or `"av"`, or `"forward_packed"`, which takes the first
                three arrays in one (`pack`).
            problem: To compute.
        """

    def forward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
    ) -> tuple[mx.array, mx.array | None, mx.array]:
        """`(out, lse, stats)`: `softmax(scale * q k^T + rpb) v` over each window, and its LSE.

        `stats` is what `backward` computes the weights from: the LSE in two parts. An LSE that the
        problem has not may be None, or not.
        """

    def backward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        out: mx.array,
        stats: mx.array,
        d_out: mx.array,
        d_lse: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
        """`(d_query, d_key, d_value, d_rpb)`, the weights recomputed from `stats`.

        `d_lse` is there if the problem has an LSE.
        """

    def backward_packed(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        out: mx.array,
        stats: mx.array,
        d_out: mx.array,
        d_lse: mx.array | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        """`(d_qkv, d_rpb)`: the same, the first three in one array (`pack`)."""

    def qk(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
    ) -> mx.array:
        """Logits `[B, *out, H, prod K]` by window slot, `-inf` in slots without a key."""

    def qk_backward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        d_logits: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """`(d_query, d_key, d_rpb)`."""

    def av(
        self, problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None
    ) -> mx.array:
        """`[B, *out, H, Dv]`: the values of each window, weighted by slot; others are ignored."""

    def av_backward(
        self,
        problem: Problem,
        attn: mx.array,
        value: mx.array,
        lengths: mx.array | None,
        d_out: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """`(d_attn, d_value)`."""


@dataclass(frozen=True)
class Launched:
    """The six functions of a tier, by way of one that takes their names."""

    launch: Launch

    def forward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
    ) -> tuple[mx.array, mx.array | None, mx.array]:
        """See `Tier.forward`."""
        out, *lse, stats = self.launch("forward", problem, (query, key, value), rpb, lengths)
        return out, lse[0] if lse else None, stats

    def backward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        out: mx.array,
        stats: mx.array,
        d_out: mx.array,
        d_lse: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
        """See `Tier.backward`."""
        arrays = [query, key, value, out, stats, d_out, *([] if d_lse is None else [d_lse])]
        d_query, d_key, d_value, *d_rpb = self.launch("backward", problem, arrays, rpb, lengths)
        return d_query, d_key, d_value, _like(rpb, d_rpb)

    def backward_packed(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        out: mx.array,
        stats: mx.array,
        d_out: mx.array,
        d_lse: mx.array | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        """See `Tier.backward_packed`."""
        arrays = [query, key, value, out, stats, d_out, *([] if d_lse is None else [d_lse])]
        d_qkv, *d_rpb = self.launch("backward_packed", problem, arrays, rpb, lengths)
        return d_qkv, _like(rpb, d_rpb)

    def qk(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
    ) -> mx.array:
        """See `Tier.qk`."""
        return self.launch("qk", problem, (query, key), rpb, lengths)[0]

    def qk_backward(
        self,
        problem: Problem,
        query: mx.array,
        key: mx.array,
        rpb: mx.array | None,
        lengths: mx.array | None,
        d_logits: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """See `Tier.qk_backward`."""
        arrays = query, key, d_logits
        d_query, d_key, *d_rpb = self.launch("qk_backward", problem, arrays, rpb, lengths)
        return d_query, d_key, _like(rpb, d_rpb)

    def av(
        self, problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None
    ) -> mx.array:
        """See `Tier.av`."""
        return self.launch("av", problem, (attn, value), None, lengths)[0]

    def av_backward(
        self,
        problem: Problem,
        attn: mx.array,
        value: mx.array,
        lengths: mx.array | None,
        d_out: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """See `Tier.av_backward`."""
        d_attn, d_value = self.launch("av_backward", problem, (attn, value, d_out), None, lengths)
        return d_attn, d_value


def _like(rpb: mx.array | None, d_rpb: list[mx.array]) -> mx.array | None:
    return None if rpb is None else d_rpb[0].astype(rpb.dtype)

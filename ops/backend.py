"""Which tier computes a problem: choosing, forcing and explaining."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import mlx.core as mx

from .neighborhood import Neighborhood
from .problem import Problem

# In the order of preference. The GPU tier has two names: one kernel source, two back-ends.
TIERS = {"fast_metal": ".gpu", "cuda": ".gpu", "nanobind": ".native", "pure": ".pure"}

_forced: str | None = None
_record: list[Explanation] | None = None


@dataclass(frozen=True)
class Explanation:
    """What computes a problem, and why the tiers preferred to it do not."""

    problem: Problem
    tier: str
    reasons: dict[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        lines = [f"{self.tier}: {self.problem}"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.reasons.items()])


def get_backend() -> str:
    """The tier asked for: ``"auto"``, or the one that [`set_backend`][] or, without it, the
    environment variable ``NATTEN_BACKEND`` forces, unless it is empty.

    Raises:
        ValueError: If ``NATTEN_BACKEND`` names no tier.
    """
    asked = os.environ.get("NATTEN_BACKEND") or "auto"
    return _forced or _checked(asked, "[get_backend] NATTEN_BACKEND")


def set_backend(name: str) -> None:
    """Forces a tier for all calls that follow.

    Args:
        name: ``"auto"`` for the fastest tier that can run each problem, else ``"pure"``,
            ``"fast_metal"``, ``"cuda"`` or ``"nanobind"``. A forced tier that cannot run a problem
            raises a `RuntimeError` that says why.

    Raises:
        ValueError: If there is no tier of that name.
    """
    global _forced
    _forced = _checked(name, "[set_backend] 'name'")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """[`set_backend`][] for the length of a ``with`` block."""
    global _forced
    before = _forced
    set_backend(name)
    try:
        yield
    finally:
        _forced = before


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Explanation]:
    """Which tier runs each problem of ``function(*args, **kwargs)``, and why others do not.

    ``function`` may be an operator, a layer or a whole model. It is called once; MLX being lazy,
    nothing is computed. Calls of plain attention (a kernel that covers its input) show as
    ``"dense"``.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.zeros((1, 16, 2, 8))
        >>> with ops.use_backend("pure"):
        ...     ops.explain(ops.na1d, x, x, x, kernel_size=3)[0].tier
        'pure'
    """
    global _record
    before, _record = _record, []
    try:
        function(*args, **kwargs)
        return list(dict.fromkeys(_record))
    finally:
        _record = before


def get_support_matrix() -> dict[str, dict[str, str]]:
    """``{tier: {operator: "yes" or why not}}`` for float32 examples on the default device."""
    examples = {}
    for rank in (1, 2, 3):
        one = _example(rank)
        for suffix in ("", "_qk", "_av", "_av_fused"):
            examples[f"na{rank}d{suffix}"] = one
        examples[f"na{rank}d_qk_rpb"] = replace(one, has_rpb=True)
        examples[f"na{rank}d_varlen"] = replace(one, has_lengths=True)
    return {
        tier: {op: why_not(tier, example) or "yes" for op, example in examples.items()}
        for tier in TIERS
    }


def has_metal() -> bool:
    """Whether the Metal kernels can run here."""
    return why_not("fast_metal", _example(2)) is None


def has_cuda() -> bool:
    """Whether the kernels can run on a CUDA device here."""
    return why_not("cuda", _example(2)) is None


def has_nanobind() -> bool:
    """Whether the compiled tier is built and can run here."""
    return why_not("nanobind", _example(2)) is None


def choose(problem: Problem, op: str) -> ModuleType:
    """The tier that computes ``problem``: the forced one, or the first that can.

    Raises:
        RuntimeError: If the forced tier cannot.
    """
    name, reasons = _first(problem)
    if name is None:
        wanted = get_backend()
        raise RuntimeError(f"[{op}] backend '{wanted}' cannot run this: {reasons[wanted]}.")
    record(problem, name, reasons)
    return _module(name)


def outruns_dense(problem: Problem) -> bool:
    """Whether the tier for a problem outruns MLX's attention where each window is all there is.

    Also true of a forced tier that cannot run it: `choose` then says why, instead of MLX's
    attention passing for that tier.
    """
    name, _ = _first(problem)
    return name is None or _module(name).outruns_dense(problem)


def _first(problem: Problem) -> tuple[str | None, dict[str, str]]:
    """The tier for a problem, None if the forced one cannot, and why others before it do not."""
    wanted = get_backend()
    reasons: dict[str, str] = {}
    for name in TIERS if wanted == "auto" else [wanted]:
        reason = why_not(name, problem)
        if reason is None:
            return name, reasons
        reasons[name] = reason
    return None, reasons


def why_not(name: str, problem: Problem) -> str | None:
    """Why a tier cannot run a problem on the default device; None if it can."""
    tier = _module(name)
    if name != tier.NAME:
        return f"this MLX has no {'Metal' if name == 'fast_metal' else 'CUDA'} back-end"
    return tier.why_not(problem)


def record(problem: Problem, tier: str, reasons: dict[str, str] | None = None) -> None:
    """Notes a choice for [`explain`][]."""
    if _record is not None:
        _record.append(Explanation(problem, tier, dict(reasons or {})))


def _checked(name: str, origin: str) -> str:
    if name not in ("auto", *TIERS):
        raise ValueError(f"{origin} must be auto, {', '.join(TIERS)} but got {name!r}.")
    return name


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(TIERS[name], __package__)


def _example(rank: int) -> Problem:
    hood = Neighborhood.of(rank, 3)
    return Problem(hood, 1, (8,) * rank, 2, 2, 32, 32, 1.0, mx.float32)

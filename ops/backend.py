"""Which tier computes a problem: choosing, forcing and explaining."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import mlx.core as mx

from . import dense, gpu
from .exports import export_target
from .neighborhood import Neighborhood
from .problem import Problem
from .tier import KernelError, Tier

if TYPE_CHECKING:
    from . import native, pure

    _FACES: tuple[Tier, ...] = (gpu, native, pure)  # mypy holds each module against the face

# In the order of preference. The GPU tier has two names: one kernel source, two back-ends.
TIERS = {"fast_metal": ".gpu", "cuda": ".gpu", "nanobind": ".native", "pure": ".pure"}
NAMES = ("auto", *TIERS)

# By set_backend, for all threads. To read the environment at each call takes as long as to choose.
_set = os.environ.get("NATTEN_BACKEND") or "auto"
# Of one thread or task, for the length of a `with` or of a call.
_used: ContextVar[str | None] = ContextVar("natten_zoo_backend", default=None)
_explained: ContextVar[list[Explanation] | None] = ContextVar("natten_zoo_explain", default=None)

Arguments = ParamSpec("Arguments")
Results = TypeVar("Results")


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
    """The tier asked for: `"auto"`, or the one that is forced here and now.

    What [`use_backend`][] says comes first, then [`set_backend`][], then what the environment
    variable `NATTEN_BACKEND` said when this was imported, unless it was empty.

    Raises:
        ValueError: If `NATTEN_BACKEND` named no tier.
    """
    asked = _used.get() or _set
    if asked not in NAMES:  # all others were checked
        _checked(asked, "[get_backend] NATTEN_BACKEND")
    return asked


def set_backend(name: str) -> None:
    """Forces a tier for all calls that follow, in every thread.

    Within [`use_backend`][natten_zoo.ops.use_backend] it has no effect before the block ends.

    Args:
        name: `"auto"` for the fastest tier that can run each problem, else `"pure"`,
            `"fast_metal"`, `"cuda"` or `"nanobind"`. A forced tier that cannot run a problem
            raises a `RuntimeError` that says why.

    Raises:
        ValueError: If there is no tier of that name.
    """
    global _set
    _set = _checked(name, "[set_backend] 'name'")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a tier for the length of a `with` block, in this thread or task alone.

    Raises:
        ValueError: If there is no tier of that name.
    """
    token = _used.set(_checked(name, "[use_backend] 'name'"))
    try:
        yield
    finally:
        _used.reset(token)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Explanation]:
    """Which tier runs each problem of `function(*args, **kwargs)`, and why others do not.

    `function` may be an operator, a layer or a whole model. It is called once; MLX being lazy,
    nothing is computed. Calls of plain attention (a kernel that covers its input) show as
    `"dense"`. Calls of other threads do not show.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.zeros((1, 16, 2, 8))
        >>> with ops.use_backend("pure"):
        ...     ops.explain(ops.na1d, x, x, x, kernel_size=3)[0].tier
        'pure'
    """
    chosen: list[Explanation] = []
    token = _explained.set(chosen)
    try:
        function(*args, **kwargs)
    finally:
        _explained.reset(token)
    return [_with_cores(one) for one in dict.fromkeys(chosen)]


def _with_cores(one: Explanation) -> Explanation:
    """With what became known of the GPU's cores when kernels were built."""
    more = gpu.core_reasons(one.problem) if one.tier == gpu.NAME else {}
    return replace(one, reasons=one.reasons | more)


def get_support_matrix() -> dict[str, dict[str, str]]:
    """`{tier: {operator: "yes" or why not}}` for float32 examples on the default device."""
    examples = {}
    for rank in (1, 2, 3):
        one = _example(rank)
        for suffix in ("", "_qkvpacked", "_qk", "_av", "_av_fused"):
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


def choose(problem: Problem, op: str) -> Tier:
    """The tier that computes `problem`: the forced one, or the first that can.

    Raises:
        RuntimeError: If the forced tier cannot, or none.
    """
    chosen = choose_attention(problem, op, may_be_dense=False)
    assert chosen is not None
    return chosen


def choose_attention(problem: Problem, op: str, may_be_dense: bool = True) -> Tier | None:
    """The same, or None where MLX's own attention to all keys is faster, and may be taken.

    A forced tier computes what it can, but for windows that cover their map: nothing is left of
    neighborhood attention there.
    """
    tier, reasons = _first(problem)
    if tier is None:
        whys = ", ".join(f"{name}: {why}" for name, why in reasons.items())
        wanted = get_backend()
        why = whys if wanted == "auto" else reasons[wanted]
        raise RuntimeError(f"[{op}] backend '{wanted}' cannot run this: {why}.")
    why_dense = _why_dense(problem, tier) if may_be_dense else None
    if why_dense:
        record(problem, "dense", {**reasons, tier.NAME: why_dense})
        return None
    record(problem, tier.NAME, reasons)
    return tier


def or_pure(
    tier: Tier,
    function: Callable[Concatenate[Problem, Arguments], Results],
    instead: Callable[Concatenate[Problem, Arguments], Results],
) -> Callable[Concatenate[Problem, Arguments], Results]:
    """A tier's function that, where a kernel cannot be built, falls back to the pure tier's.

    A tier that is forced raises its `KernelError` instead.
    """

    def run(problem: Problem, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Results:
        try:
            return function(problem, *args, **kwargs)
        except KernelError as error:
            if get_backend() == tier.NAME:
                raise
            record(problem, "pure", {tier.NAME: str(error)})
            return instead(problem, *args, **kwargs)

    return run


def circumstances() -> Hashable:
    """What the choice of a tier depends on beside the problem."""
    return get_backend(), export_target(), gpu.circumstances()


def _first(problem: Problem) -> tuple[Tier | None, dict[str, str]]:
    """The tier for a problem, None if the forced one cannot, and why others before it do not."""
    wanted = get_backend()
    reasons: dict[str, str] = {}
    for name in TIERS if wanted == "auto" else [wanted]:
        reason = why_not(name, problem)
        if reason is None:
            return _tier(name), reasons
        reasons[name] = reason
    return None, reasons


def _why_dense(problem: Problem, tier: Tier) -> str | None:
    """Why MLX's own attention should compute a problem instead of its tier, if so."""
    whole = problem.neighborhood.covers(problem.spatial)
    asked = (whole or get_backend() == "auto") and not dense.why_not(problem)
    return tier.why_dense(problem) if asked else None


def why_not(name: str, problem: Problem) -> str | None:
    """Why a tier cannot run a problem on the default device; None if it can."""
    tier = _tier(name)
    if name != tier.NAME:
        return f"this MLX has no {'Metal' if name == 'fast_metal' else 'CUDA'} back-end"
    return tier.SUPPORT.why_not(problem) or tier.why_not(problem)


def record(problem: Problem, tier: str, reasons: dict[str, str] | None = None) -> None:
    """Notes a choice for [`explain`][natten_zoo.ops.explain]."""
    explained = _explained.get()
    if explained is not None:
        explained.append(Explanation(problem, tier, dict(reasons or {})))


def is_explaining() -> bool:
    """Whether choices are noted now."""
    return _explained.get() is not None


def _checked(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin} must be {', '.join(NAMES)} but got {name!r}.")
    return name


@cache
def _tier(name: str) -> Tier:
    """Imported late: the compiled tier warns if it was compiled for another MLX."""
    return cast(Tier, importlib.import_module(TIERS[name], __package__))


def _example(rank: int) -> Problem:
    hood = Neighborhood.of(rank, 3)
    return Problem(hood, 1, (8,) * rank, 2, 2, 32, 32, 1.0, mx.float32)

"""Random problems for the GPU tier, and what its answers are held against.

Imports neither pytest nor the emulator: scripts/gpu_check.py runs the same problems on a real GPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from natten_zoo.metal import (
    HOPPER,
    MATRIX,
    MATRIX_16,
    MATRIX_M1,
    NAX,
    SCALAR_4,
    SCALAR_8,
    Core,
)
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.gpu.plan import Template
from natten_zoo.ops.gpu.programs import program
from natten_zoo.ops.problem import Problem
from tests.ops.finer import FinerReference
from tests.reference import Reference

MATRIX_2, MATRIX_4 = (replace(MATRIX, parts=n) for n in (2, 4))  # as if rows were long
ATTENTION = ("forward", "backward")  # a tier's functions, and those of the separate products:
UNFUSED = ("qk", "qk_backward", "av", "av_backward")
TOLERANCE = {mx.float32: 1e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}


@dataclass(frozen=True)
class Family:
    """Problems that share their kernels' template arguments: one build each."""

    rank: int
    dtype: mx.Dtype
    head_dim: int
    value_dim: int
    has_rpb: bool
    kernel_size: tuple[int, ...] | None = None  # the size of the bias table is a template argument
    enough_threadgroups: int = 128  # of the device: 1 for the largest tile
    core: Core = MATRIX  # CUDA has its own in its place
    finer: bool = False  # whether queries lie on a finer map
    largest: tuple[int, ...] = ()  # tokens on each axis; as many as others of its rank have
    is_plain: bool = False  # whether it has none of a problem's options

    @property
    def attends_only(self) -> bool:
        """Whether it has no separate products: of finer queries, or by cores with planes."""
        return self.finer or self.core.plane > 0

    def __str__(self) -> str:
        dtype, core = str(self.dtype).removeprefix("mlx.core."), self.core
        dims = f"{self.head_dim}-{self.value_dim}"
        name = core.name if core.has_bfloat else f"{core.name}-m1-"
        finer = "-finer" if self.finer else ""
        return f"{self.rank}d-{dtype}-{dims}-{name}{core.team_threads}x{core.rows}{finer}"


FAMILIES = (
    Family(1, mx.float32, 12, 12, True, (5,)),
    Family(1, mx.float16, 16, 24, False, enough_threadgroups=1),
    Family(1, mx.bfloat16, 5, 8, True, (8,), core=MATRIX_16),
    Family(2, mx.float32, 8, 8, False, enough_threadgroups=1),
    Family(2, mx.float32, 12, 16, True, (2, 5), core=MATRIX_16),
    Family(2, mx.float16, 32, 32, True, (3, 3), enough_threadgroups=1),
    Family(2, mx.bfloat16, 20, 7, False, core=MATRIX_16, enough_threadgroups=1),
    Family(3, mx.float32, 8, 4, False, enough_threadgroups=1),
    Family(3, mx.float32, 4, 12, True, (2, 3, 2), core=MATRIX_16),
    Family(3, mx.float16, 16, 16, True, (3, 2, 2), enough_threadgroups=1),
    Family(1, mx.float32, 12, 16, True, (6,), core=SCALAR_4),
    Family(2, mx.float16, 32, 32, False, enough_threadgroups=1, core=SCALAR_4),
    Family(2, mx.bfloat16, 20, 7, True, (3, 4), enough_threadgroups=1, core=SCALAR_8),
    Family(3, mx.float32, 8, 5, True, (3, 3, 3), core=SCALAR_4),
    Family(3, mx.float16, 40, 24, False, (2, 4, 3), enough_threadgroups=1, core=SCALAR_8),
    Family(2, mx.bfloat16, 20, 7, True, (4, 3), core=MATRIX_M1),
    Family(1, mx.float16, 16, 24, True, (7,), core=NAX),
    Family(2, mx.float16, 32, 48, True, (3, 4), enough_threadgroups=1, core=NAX),
    Family(2, mx.bfloat16, 20, 7, False, enough_threadgroups=1, core=NAX),
    Family(3, mx.float16, 40, 24, True, (2, 4, 3), core=NAX),
    Family(3, mx.bfloat16, 64, 64, False, enough_threadgroups=1, core=NAX),
    Family(2, mx.float16, 32, 20, True, (3, 3), enough_threadgroups=1, core=MATRIX_2),
    Family(1, mx.float32, 12, 40, True, (5,), enough_threadgroups=1, core=MATRIX_4),
    Family(3, mx.bfloat16, 130, 200, False, enough_threadgroups=1),
    Family(2, mx.float32, 256, 160, True, enough_threadgroups=1),
    Family(1, mx.float16, 512, 384, False, enough_threadgroups=1),
    Family(1, mx.float32, 12, 16, True, (4,), enough_threadgroups=1, finer=True),
    Family(2, mx.float16, 16, 24, True, (3, 4), enough_threadgroups=1, finer=True),
    Family(3, mx.bfloat16, 8, 20, False, (2, 3, 2), core=MATRIX_16, finer=True),
    Family(2, mx.float32, 12, 8, True, (4, 3), core=SCALAR_4, finer=True),
    Family(3, mx.float16, 16, 16, False, (3, 2, 2), core=SCALAR_8, finer=True),
    Family(2, mx.float16, 48, 64, False, (3, 3), enough_threadgroups=1, core=NAX, finer=True),
)


def on_hopper(
    dtype: mx.Dtype,
    dims: tuple[int, int],
    kernel_size: tuple[int, ...],
    largest: tuple[int, ...],
    *,
    enough: int = 1,
    is_plain: bool = False,
    has_rpb: bool = False,
    finer: bool = False,
) -> Family:
    """Windows that take several slabs, on maps of several tiles."""
    rank = len(kernel_size)
    return Family(
        rank, dtype, *dims, has_rpb, kernel_size, enough, HOPPER, finer, largest, is_plain
    )


# For wgmma, which no emulator has: scripts/gpu_check.py runs them where a GPU does.
ON_HOPPER = (
    on_hopper(mx.float16, (128, 128), (300,), (700,), is_plain=True),
    on_hopper(mx.float16, (32, 32), (24, 25), (36, 40), is_plain=True),  # walks that are open
    on_hopper(mx.bfloat16, (32, 48), (3, 12, 24), (4, 13, 26), is_plain=True),
    on_hopper(mx.bfloat16, (128, 128), (10, 14), (30, 30), is_plain=True, enough=256),
    on_hopper(mx.float16, (128, 64), (150,), (500,)),
    on_hopper(mx.bfloat16, (64, 96), (90,), (400,), enough=256),
    on_hopper(mx.float16, (128, 128), (13, 9), (36, 36)),
    on_hopper(mx.bfloat16, (64, 64), (10, 16), (40, 40), enough=256),
    on_hopper(mx.float16, (20, 7), (11, 8), (36, 36)),
    on_hopper(mx.bfloat16, (64, 64), (3, 7, 7), (8, 16, 16)),
    on_hopper(mx.float16, (128, 128), (4, 5, 6), (8, 12, 13)),
    on_hopper(mx.float16, (40, 48), (2, 9, 5), (8, 16, 16), enough=256),
    on_hopper(mx.float16, (64, 64), (8, 9), (36, 36), has_rpb=True),
    on_hopper(mx.float16, (48, 64), (7, 6), (20, 20), finer=True),
)


@dataclass
class Case:
    """A problem with its arrays, and the same in float64."""

    problem: Problem
    query: mx.array
    key: mx.array
    value: mx.array
    rpb: mx.array | None
    lengths: mx.array | None
    seed: int

    @property
    def reference(self) -> Reference | FinerReference:
        hood, lengths = self.problem.neighborhood, self.lengths
        plain = Reference(
            self.problem.spatial, hood.kernel_size, hood.dilation, hood.stride,
            hood.window_stride, hood.is_causal, self.problem.scale,
            None if lengths is None else np.array(lengths),
        )  # fmt: skip
        return FinerReference(plain, self.problem.finer) if self.problem.finer else plain


@contextmanager
def tiles_of(family: Family) -> Iterator[None]:
    """Has problems laid out with the tiles of a family."""
    device = current()
    core = family.core
    if device.platform == "cuda" and core.whole and not core.plane:
        core = None
    enough = family.enough_threadgroups
    with use_device(replace(device, core=core, enough_threadgroups=enough)):
        yield


def random_cases(
    family: Family, seed: int, count: int, alike: tuple[str, ...] = ()
) -> Iterator[Case]:
    """`count` problems of a family, laid out with its tiles.

    Of these, if `alike` names a tier's functions, those for which they launch the same kernels as
    for most: one build of each is enough.
    """
    with tiles_of(family):
        cases = (random_case(family, seed * 100_003 + i) for i in range(count))
        yield from most_alike(cases, alike) if alike else cases


def most_alike(cases: Iterable[Case], functions: tuple[str, ...]) -> list[Case]:
    """Those of the largest group whose kernels have the same template arguments."""
    groups: defaultdict[tuple[Template, ...], list[Case]] = defaultdict(list)
    for case in cases:
        programs = [program(name, case.problem, current()) for name in functions]
        groups[tuple(step.plan.template for x in programs for step in x.steps)].append(case)
    return max(groups.values(), key=len)


def random_case(family: Family, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    rank = family.rank
    largest = family.largest or ({1: 60, 2: 14, 3: 6}[rank],) * rank
    largest = tuple(n // 2 for n in largest) if family.finer else largest  # there are more heads
    kernel = family.kernel_size or tuple(rng.integers(1, {1: 14, 2: 7, 3: 4}[rank], rank).tolist())
    dilation = tuple(
        int(rng.integers(1, max(1, min(4, n // k)) + 1))
        for k, n in zip(kernel, largest, strict=True)
    )
    dilation = (1,) * rank if family.is_plain else dilation
    spatial = tuple(
        int(rng.integers(k * d, max(k * d, n) + 1))
        for k, d, n in zip(kernel, dilation, largest, strict=True)
    )

    def strides() -> tuple[int, ...]:
        return tuple(int(rng.integers(1, k + 1)) if rng.random() < 0.4 else 1 for k in kernel)

    hood = Neighborhood.of(
        rank, kernel, dilation=dilation, stride=strides(), window_stride=strides(),
        is_causal=tuple(bool(c) for c in rng.random(rank) < 0.3),
    )  # fmt: skip
    hood = Neighborhood.of(rank, kernel) if family.is_plain else hood
    batch, kv_heads, group = (int(rng.choice(n)) for n in ([1, 1, 2], [1, 1, 2], [1, 1, 2]))
    lengths = None
    if rng.random() < 0.25 and not family.is_plain:
        lengths = mx.array(rng.integers(0, np.array(spatial) + 1, (batch, rank)).astype(np.int32))
    problem = Problem(
        hood, batch, spatial, kv_heads * group, kv_heads, family.head_dim, family.value_dim,
        float(rng.uniform(0.1, 0.5)), family.dtype, family.has_rpb, lengths is not None,
    )  # fmt: skip
    return finer_case(problem, rng) if family.finer else case_of(problem, seed, lengths)


def finer_case(problem: Problem, rng: np.random.Generator) -> Case:
    """The same problem with queries on a finer map, none left out."""
    hood = replace(problem.neighborhood, stride=(1,) * problem.rank)
    finer = tuple(rng.integers(1, 5 - problem.rank, problem.rank, endpoint=True).tolist())
    heads = problem.heads * math.prod(finer)
    problem = replace(problem, neighborhood=hood, heads=heads, has_lengths=False, finer=finer)
    return case_of(problem, int(rng.integers(2**31)))


def case_of(problem: Problem, seed: int = 0, lengths: mx.array | None = None) -> Case:
    """Normally distributed arrays for a problem."""
    hood, rng = problem.neighborhood, np.random.default_rng([seed, 1])
    head = (problem.batch, *problem.spatial, problem.kv_heads)
    return Case(
        problem,
        normal(rng, (*problem.queries, problem.head_dim), problem.dtype),
        normal(rng, (*head, problem.head_dim), problem.dtype),
        normal(rng, (*head, problem.value_dim), problem.dtype),
        normal(rng, (problem.heads, *hood.bias_shape), mx.float32) if problem.has_rpb else None,
        lengths,
        seed,
    )


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.array(rng.standard_normal(shape, np.float32)).astype(dtype)


def check_attention(case: Case) -> dict[str, float]:
    """Error of each result of forward and backward, relative to its largest value."""
    problem, ref = case.problem, case.reference
    given = (case.query, case.key, case.value, case.rpb)
    out, lse, stats = gpu.forward(problem, *given, case.lengths)
    rng = np.random.default_rng([case.seed, 2])
    d_out = normal(rng, out.shape, problem.dtype)
    d_lse = normal(rng, lse.shape, mx.float32)
    grads = gpu.backward(problem, *given, case.lengths, out, stats, d_out, d_lse)
    exact = [None if x is None else numpy(x) for x in given]
    wanted = [*ref.forward(*exact), *ref.backward(*exact, numpy(d_out), numpy(d_lse))]
    return errors(
        ("out", "lse", "d_query", "d_key", "d_value", "d_rpb"), (out, lse, *grads), wanted
    )


def check_forward(case: Case) -> dict[str, float]:
    """Of `check_attention` what comes forward."""
    given = (case.query, case.key, case.value, case.rpb)
    exact = [None if x is None else numpy(x) for x in given]
    out, lse, _ = gpu.forward(case.problem, *given, case.lengths)
    return errors(("out", "lse"), (out, lse), case.reference.forward(*exact))


def check_unfused(case: Case) -> dict[str, float]:
    """The same for qk, av and their backwards."""
    problem, ref = case.problem, case.reference
    query, key, value, rpb = case.query, case.key, case.value, case.rpb
    rng = np.random.default_rng([case.seed, 3])
    logits = gpu.qk(problem, query, key, rpb, case.lengths)
    weights = normal(rng, logits.shape, problem.dtype)
    d_qk = gpu.qk_backward(problem, query, key, rpb, case.lengths, weights)
    out = gpu.av(problem, weights, value, case.lengths)
    d_out = normal(rng, out.shape, problem.dtype)
    d_av = gpu.av_backward(problem, weights, value, case.lengths, d_out)
    q, k, v, w, g = map(numpy, (query, key, value, weights, d_out))
    b = None if rpb is None else numpy(rpb)
    wanted = [
        ref.qk(q, k, b),
        *ref.qk_backward(q, k, b, w),
        ref.av(w, v),
        *ref.av_backward(w, v, g),
    ]
    names = ("logits", "d_query", "d_key", "d_rpb", "out", "d_attn", "d_value")
    return errors(names, (logits, *d_qk, out, *d_av), wanted)


def numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), np.float64)


def errors(names: tuple[str, ...], got: tuple, wanted: list) -> dict[str, float]:
    return {n: error(x, y) for n, x, y in zip(names, got, wanted, strict=True) if y is not None}


def error(got: mx.array, wanted: np.ndarray) -> float:
    """Largest difference over the largest finite value; infinite where only one is finite."""
    x, finite = numpy(got), np.isfinite(wanted)
    if x.shape != wanted.shape or (np.isfinite(x) != finite).any():
        return np.inf
    if not finite.any():
        return 0.0
    scale = max(1.0, np.abs(wanted[finite]).max())
    return float(np.abs(x[finite] - wanted[finite]).max() / scale)


def worst(found: dict[str, float], dtype: mx.Dtype, channels: int = 128) -> str | None:
    """The first result beyond the tolerance of its dtype, if any.

    Gradients of logits, which are rounded to the dtype, are sums over channels.
    """
    tolerance = TOLERANCE[dtype] * max(1.0, channels / 128) ** 0.5
    for name, value in found.items():
        if not value <= tolerance:
            return f"{name} is off by {value:.1e}"
    return None

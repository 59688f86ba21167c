"""Cases of the operators, drawn by Hypothesis and run on a tier, beside their float64 results."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import strategies as st

from natten_zoo import ops
from natten_zoo.ops import backend
from natten_zoo.ops.gpu.device import platform
from natten_zoo.ops.problem import Problem
from tests.reference import Reference

RANKED = {
    name: (None, *(getattr(ops, f"na{rank}d{name}") for rank in (1, 2, 3)))
    for name in ("", "_qk", "_av", "_varlen")
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """Everything that decides a call; arrays follow from it."""

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    window_stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    batch: int = 1
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 4
    value_dim: int = 4
    scale: float | None = None
    has_rpb: bool = False
    lengths: tuple[tuple[int, ...], ...] | None = None
    dtype: str = "float32"
    view: str = "plain"
    seed: int = 0

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def hood(self) -> ops.Neighborhood:
        return ops.Neighborhood.of(
            self.rank,
            self.kernel_size,
            dilation=self.dilation,
            stride=self.stride,
            window_stride=self.window_stride,
            is_causal=self.is_causal,
        )

    @property
    def problem(self) -> Problem:
        return Problem(
            self.hood, self.batch, self.spatial, self.heads, self.kv_heads, self.head_dim,
            self.value_dim, self.used_scale, getattr(mx, self.dtype), self.has_rpb,
            self.lengths is not None,
        )  # fmt: skip

    @property
    def used_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @cached_property
    def reference(self) -> Reference:
        lengths = None if self.lengths is None else np.array(self.lengths)
        return Reference(
            self.spatial, self.kernel_size, self.dilation, self.stride, self.window_stride,
            self.is_causal, self.used_scale, lengths,
        )  # fmt: skip

    def keep(self, x: np.ndarray) -> np.ndarray:
        """The queries that the stride keeps."""
        return x[(slice(None), *(slice(None, None, s) for s in self.stride))]

    def array(self, name: str) -> mx.array:
        """One input or cotangent, rounded to the dtype and laid out as the case says."""
        out = self.hood.output_size(self.spatial)
        shape = {
            "query": (self.batch, *self.spatial, self.heads, self.head_dim),
            "key": (self.batch, *self.spatial, self.kv_heads, self.head_dim),
            "value": (self.batch, *self.spatial, self.kv_heads, self.value_dim),
            "rpb": (self.heads, *self.hood.bias_shape),
            "attn": (self.batch, *out, self.heads, self.hood.volume),
            "d_out": (self.batch, *out, self.heads, self.value_dim),
            "d_lse": (self.batch, *out, self.heads),
        }[name]
        rng = np.random.default_rng([self.seed, *name.encode()])
        x = mx.array(rng.standard_normal(shape).astype(np.float32))
        x = x if name == "d_lse" else x.astype(getattr(mx, self.dtype))
        if self.view == "transposed":  # the same numbers behind other strides
            return mx.contiguous(x.swapaxes(0, -1)).swapaxes(0, -1)
        if self.view == "sliced":
            return mx.pad(x, [(1, 1)] * x.ndim)[(slice(1, -1),) * x.ndim]
        return x

    def arrays(self, *names: str) -> list[mx.array]:
        return [self.array(n) for n in names if n != "rpb" or self.has_rpb]


def options(case: Case) -> dict:
    return {
        "dilation": case.dilation, "stride": case.stride, "is_causal": case.is_causal,
        "window_stride": case.window_stride,
    }  # fmt: skip


def attention(case: Case) -> Callable[..., list[mx.array]]:
    """`(query, key, value[, rpb]) -> [out, lse]` of the public operator."""

    def function(query: mx.array, key: mx.array, value: mx.array, *rpb: mx.array) -> list[mx.array]:
        more = {"rpb": rpb[0] if rpb else None, "return_lse": True, "scale": case.scale}
        if case.lengths is not None:
            sizes = mx.array(np.array(case.lengths, np.int32).reshape(case.batch, case.rank))
            run = RANKED["_varlen"][case.rank]
            return list(run(query, key, value, sizes, case.kernel_size, **options(case), **more))
        return list(
            RANKED[""][case.rank](query, key, value, case.kernel_size, **options(case), **more)
        )

    return function


def attention_error(case: Case, tier: str) -> dict[str, float]:
    """How far out, LSE and each gradient are from float64, relative to the largest number."""
    names = ("query", "key", "value", "rpb")
    inputs, cotangents = case.arrays(*names), case.arrays("d_out", "d_lse")
    with ops.use_backend(tier):
        results = [x for xs in mx.vjp(attention(case), inputs, cotangents) for x in xs]
    return dict(
        zip(("out", "lse", *names), errors(results, expected_attention(case)), strict=False)
    )


def expected_attention(case: Case) -> list[np.ndarray]:
    q, k, v, *rpb, d_out, d_lse = map(
        float64, case.arrays("query", "key", "value", "rpb", "d_out", "d_lse")
    )
    bias = rpb[0] if rpb else None
    ref, kept = case.reference, case.keep(q)
    d_q = np.zeros_like(q)
    grads = ref.backward(kept, k, v, bias, d_out, d_lse)
    case.keep(d_q)[:] = grads[0]
    return [*ref.forward(kept, k, v, bias), d_q, *(g for g in grads[1:] if g is not None)]


def qk_error(case: Case, tier: str) -> list[float]:
    inputs, (d_logits,) = case.arrays("query", "key", "rpb"), case.arrays("attn")

    def function(query: mx.array, key: mx.array, *rpb: mx.array) -> list[mx.array]:
        more = {"rpb": rpb[0] if rpb else None, "scale": case.scale}
        return [RANKED["_qk"][case.rank](query, key, case.kernel_size, **options(case), **more)]

    with ops.use_backend(tier):
        results = [x for xs in mx.vjp(function, inputs, [d_logits]) for x in xs]
    q, k, *rpb = map(float64, inputs)
    bias, kept, d_q = (rpb[0] if rpb else None), case.keep(q), np.zeros_like(q)
    grads = case.reference.qk_backward(kept, k, bias, float64(d_logits))
    case.keep(d_q)[:] = grads[0]
    wanted = [case.reference.qk(kept, k, bias), d_q, *(g for g in grads[1:] if g is not None)]
    return errors(results, wanted)


def av_error(case: Case, tier: str) -> list[float]:
    inputs, (d_out,) = case.arrays("attn", "value"), case.arrays("d_out")

    def function(attn: mx.array, value: mx.array) -> list[mx.array]:
        return [RANKED["_av"][case.rank](attn, value, case.kernel_size, **options(case))]

    with ops.use_backend(tier):
        results = [x for xs in mx.vjp(function, inputs, [d_out]) for x in xs]
    attn, value = map(float64, inputs)
    wanted = case.reference.av(attn, value)
    return errors(results, [wanted, *case.reference.av_backward(attn, value, float64(d_out))])


def plain_error(case: Case) -> dict[str, float]:
    """`attention_error` of the plain computation: every operation in the case's dtype."""
    keys, bias = (mx.array(t.astype(np.int32)) for t in case.reference.tables(case.spatial))

    def function(query: mx.array, key: mx.array, value: mx.array, *rpb: mx.array) -> list[mx.array]:
        query = query[(slice(None), *(slice(None, None, s) for s in case.stride))]
        q, k, v = (x.flatten(1, -3) for x in (query, key, value))
        k, v = (mx.repeat(x, case.group, axis=2)[:, mx.maximum(keys, 0)] for x in (k, v))
        logits = case.used_scale * (q[:, :, None] * k).sum(axis=-1)  # [B, queries, slots, H]
        if rpb:
            logits = logits + rpb[0].flatten(1)[:, mx.maximum(bias, 0)].transpose(1, 2, 0)
        logits = mx.where(keys[..., None] < 0, -mx.inf, logits)
        lse = mx.logsumexp(logits, axis=2)
        out = (mx.softmax(logits, axis=2)[..., None] * v).sum(axis=2)
        shape = query.shape[:-1]
        return [out.reshape(*shape, -1), lse.reshape(shape).astype(mx.float32)]

    names = ("query", "key", "value", "rpb")
    results = mx.vjp(function, case.arrays(*names), case.arrays("d_out", "d_lse"))
    results = [x for xs in results for x in xs]
    return dict(
        zip(("out", "lse", *names), errors(results, expected_attention(case)), strict=False)
    )


def errors(results: list[mx.array], wanted: list[np.ndarray]) -> list[float]:
    """Largest difference over the largest number, per array; infinities must agree."""
    found = []
    for x, y in zip(results, wanted, strict=True):
        assert x.shape == y.shape
        x, finite = float64(x), np.isfinite(y)
        assert np.array_equal(x[~finite], y[~finite])
        scale = np.abs(y[finite]).max(initial=1)
        found.append(float(np.abs(x[finite] - y[finite]).max(initial=0) / scale))
    return found


def float64(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def tiers(case: Case | None = None) -> list[str]:
    """The tiers that run here, or that run a case."""
    problem = (case or CASES["2-D"]).problem
    return [name for name in backend.TIERS if backend.why_not(name, problem) is None]


def emulated() -> list[str]:
    """The GPU's tier where there is no GPU: conftest.py has its tests run in the emulator."""
    return ["fast_metal"] if platform() is None else []


@st.composite
def cases(draw, lengths: bool = False) -> Case:
    """The whole parameter space, small enough for brute force."""
    rank = draw(st.integers(1, 3))
    tokens = (40, 11, 6)[rank - 1]
    per_axis = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    kernel = per_axis(st.integers(1, (17, 8, 4)[rank - 1]))
    dilation = tuple(draw(st.integers(1, max(1, min(4, tokens // k)))) for k in kernel)
    spatial = tuple(
        draw(st.integers(k * d, max(k * d, tokens))) for k, d in zip(kernel, dilation, strict=True)
    )
    steps = st.tuples(*(st.integers(1, k) for k in kernel))
    ones = st.just((1,) * rank)
    batch = draw(st.integers(1, 2))
    sizes = st.tuples(*(st.integers(0, n) for n in spatial))
    return Case(
        spatial, kernel, dilation, draw(ones | steps), draw(ones | steps),
        per_axis(st.booleans()), batch, draw(st.integers(1, 2)), draw(st.integers(1, 3)),
        draw(st.sampled_from([4, 1, 5, 8, 12, 33])), draw(st.sampled_from([4, 1, 6, 16])),
        draw(st.none() | st.floats(0, 1)), draw(st.booleans()),
        tuple(draw(sizes) for _ in range(batch)) if lengths else None,
        view=draw(st.sampled_from(["plain", "transposed", "sliced"])),
        seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip


def _case(spatial: tuple[int, ...], kernel: int | tuple[int, ...], **rest) -> Case:
    per_axis = lambda x: x if isinstance(x, tuple) else (x,) * len(spatial)  # noqa: E731
    named = {k: per_axis(rest.pop(k, 1)) for k in ("dilation", "stride", "window_stride")}
    causal = per_axis(rest.pop("is_causal", False))
    return Case(spatial, per_axis(kernel), is_causal=causal, **named, **rest)


CASES = {
    "1-D": _case((23,), 7, batch=2, kv_heads=3),
    "2-D": _case((9, 12), (3, 5), batch=2, kv_heads=2, has_rpb=True),
    "3-D": _case((5, 6, 7), (3, 2, 5), kv_heads=2, has_rpb=True),
    "even": _case((13, 17), (4, 6), kv_heads=2, dilation=(2, 1), has_rpb=True),
    "kernel 1": _case((6, 7), 1, kv_heads=2, has_rpb=True),
    "large kernel": _case((40, 33), (31, 15), kv_heads=1, has_rpb=True),
    "covers an axis": _case((4, 9, 9), (4, 3, 3), has_rpb=True),
    "covers all": _case((7, 7), 7, batch=2, kv_heads=2),
    "covers all, biased": _case((7, 7), 7, batch=2, kv_heads=2, has_rpb=True),
    "dilation leaves a rest": _case((17, 23), 3, dilation=(5, 4), has_rpb=True),
    "causal": _case((9, 10), 3, is_causal=(True, False), has_rpb=True, batch=2),
    "causal 3-D": _case((6, 5, 5), 3, is_causal=True, has_rpb=True),
    "stride": _case((11, 14), 4, stride=(2, 3), has_rpb=True),
    "window_stride": _case((12, 15), (4, 5), window_stride=(4, 3), has_rpb=True),
    "all strides": _case((29,), 6, dilation=2, stride=3, window_stride=5, is_causal=True),
    "GQA": _case((9, 9), 3, kv_heads=2, group=3, has_rpb=True, batch=2),
    "MQA": _case((30,), 9, kv_heads=1, group=4, value_dim=7),
    "dim 5": _case((9, 9), 3, head_dim=5, value_dim=12),
    "dim 33": _case((9, 9), 3, head_dim=33, value_dim=33, kv_heads=2),
    "dim 256": _case((9, 9), 3, head_dim=256, value_dim=256),
    "dim 288": _case((20,), 5, head_dim=288, value_dim=288),
    "transposed": _case((9, 9), 3, kv_heads=2, view="transposed", has_rpb=True, batch=2),
    "sliced": _case((9, 9), 3, kv_heads=2, view="sliced", has_rpb=True, batch=2),
    "varlen": _case(
        (11, 9), (3, 4), batch=3, kv_heads=2, lengths=((11, 9), (5, 8), (0, 3)), has_rpb=True
    ),
    "varlen causal": _case(
        (30,), 6, batch=2, is_causal=True, stride=2, lengths=((30,), (13,)), group=2
    ),
    "varlen window_stride": _case(
        (30,), 6, dilation=2, batch=2, window_stride=4, lengths=((25,), (7,))
    ),
    "no scale": _case((9, 9), 3, scale=0.0),
}  # fmt: skip


EACH_TIER = pytest.mark.parametrize("tier", [*tiers(), *emulated()])
# MLX does not trace into the emulator.
EACH_TRACED_TIER = pytest.mark.parametrize("tier", tiers())
# Cases for the emulator in every run: each builds kernels of its own.
# Options are those of random problems, too (tests/ops/gpu/test_random.py).
SAMPLE = ("1-D", "2-D", "3-D", "stride", "varlen")


def on_each_tier(names: Iterable[str], quick: Container[str] = SAMPLE) -> pytest.MarkDecorator:
    """Parametrizes by name of a case and tier; in the emulator what is not in `quick` is slow."""
    emulator = [
        pytest.param(name, tier, marks=[] if name in quick else pytest.mark.slow)
        for name in names
        for tier in emulated()
    ]
    return pytest.mark.parametrize(("name", "tier"), [*product(names, tiers()), *emulator])

"""Random problems for the tier's functions, with the float64 reference of each."""

from __future__ import annotations

import math
import random

import mlx.core as mx
import numpy as np

from natten_zoo.ops.neighborhood import Neighborhood
from natten_zoo.ops.problem import Problem
from tests.ops.finer import FinerReference
from tests.reference import Reference

TOLERANCE = {mx.float32: 5e-6, mx.float16: 6e-3, mx.bfloat16: 5e-2}


class Case:
    """One random problem with its arrays; every feature is drawn by itself.

    Queries may be on a finer map: then none are left out, and samples are whole.
    """

    def __init__(self, seed: int, dtype: mx.Dtype, is_finer: bool = False) -> None:
        r = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        rank = r.choice((1, 2, 3))
        kernel = tuple(r.randint(1, {1: 9, 2: 5, 3: 3}[rank]) for _ in range(rank))
        hood = Neighborhood(
            kernel,
            dilation=tuple(r.randint(1, 3) for _ in range(rank)),
            stride=tuple(1 if is_finer else r.randint(1, k) for k in kernel),
            window_stride=tuple(r.randint(1, k) for k in kernel),
            is_causal=tuple(r.random() < 0.3 for _ in range(rank)),
        )
        longest = {1: 40, 2: 14, 3: 7}[rank]
        spatial = tuple(r.randint(n, max(n, longest)) for n in hood.minimum_size)
        kv_heads, head_dim = r.randint(1, 2), r.choice((1, 3, 8, 16, 20, 32))
        finer = tuple(r.randint(1, 4 - rank) for _ in range(rank)) if is_finer else ()
        self.problem = p = Problem(
            neighborhood=hood,
            batch=r.randint(1, 2),
            spatial=spatial,
            heads=kv_heads * r.randint(1, 2) * math.prod(finer),
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=r.choice((head_dim, 5, 24)),
            scale=head_dim**-0.5,
            dtype=dtype,
            has_rpb=r.random() < 0.5,
            has_lengths=not is_finer and r.random() < 0.4,
            finer=finer,
        )
        self.query = self.array(*p.queries, head_dim)
        self.key = self.array(p.batch, *spatial, kv_heads, head_dim)
        self.value = self.array(p.batch, *spatial, kv_heads, p.value_dim)
        self.rpb = self.array(p.heads, *hood.bias_shape) if p.has_rpb else None
        lengths = [[r.randint(1, n) for n in spatial] for _ in range(p.batch)]
        self.lengths = mx.array(lengths, mx.int32) if p.has_lengths else None
        plain = Reference(
            spatial,
            kernel,
            hood.dilation,
            hood.stride,
            hood.window_stride,
            hood.is_causal,
            p.scale,
            np.array(lengths) if p.has_lengths else None,
        )
        self.reference = FinerReference(plain, finer) if finer else plain

    def array(self, *shape: int) -> mx.array:
        return mx.array(self.rng.standard_normal(shape, np.float32)).astype(self.dtype)


def exact(x: mx.array | None) -> np.ndarray | None:
    return None if x is None else np.array(x.astype(mx.float32)).astype(np.float64)


def check(got, wanted, dtype: mx.Dtype, what) -> None:
    """Compares results to the reference: infinities exactly, the rest relative to the largest."""
    for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
        if y is None:
            assert x is None
            continue
        x = exact(x)
        assert x.shape == y.shape
        finite = np.isfinite(y)
        assert np.array_equal(x[~finite], y[~finite]), f"result {i} of {what}"
        error = np.abs(x[finite] - y[finite]).max(initial=0)
        largest = max(1.0, np.abs(y[finite]).max(initial=0))
        assert error <= TOLERANCE[dtype] * largest, f"result {i} is off by {error} for {what}"

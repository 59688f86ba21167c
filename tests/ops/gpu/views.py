"""The arrays of a problem as views of others: what kernels read where it lies.

Imports neither pytest nor the emulator: scripts/gpu_check.py holds the same views on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np

from natten_zoo.ops import gpu
from natten_zoo.ops.problem import pack, unpack

from .problems import Case, normal

View = Callable[[mx.array], mx.array]


def _in_the_middle(x: mx.array, axis: int, before: int = 1) -> mx.array:
    """The same array as a part of a longer one on an axis."""
    more = mx.full([before if a == axis % x.ndim else n for a, n in enumerate(x.shape)], mx.nan)
    whole = mx.concatenate([more.astype(x.dtype), x, more.astype(x.dtype)], axis)
    mx.eval(whole)
    return mx.split(whole, [before, before + x.shape[axis]], axis)[1]


def _reordered(x: mx.array, *order: int) -> mx.array:
    """The same array, its axes in another order in memory."""
    lies = mx.contiguous(x.transpose(*order))
    mx.eval(lies)
    return lies.transpose(*np.argsort(order).tolist())


def _backwards(x: mx.array) -> mx.array:
    lies = mx.contiguous(x[:, ::-1])
    mx.eval(lies)
    return lies[:, ::-1]


def _every_other(x: mx.array) -> mx.array:
    lies = mx.contiguous(mx.repeat(x, 2, 1))
    mx.eval(lies)
    return lies[:, ::2]


VIEWS: dict[str, View] = {
    "some heads": lambda x: _in_the_middle(x, -2),
    "some channels": lambda x: _in_the_middle(x, -1, 8),
    "some channels, at no good address": lambda x: _in_the_middle(x, -1, 3),
    "heads first": lambda x: _reordered(x, 0, x.ndim - 2, *range(1, x.ndim - 2), x.ndim - 1),
    "channels first": lambda x: _reordered(x, 0, x.ndim - 1, *range(1, x.ndim - 1)),
    "backwards": _backwards,
    "every other token": _every_other,
}


def seen(case: Case, view: View) -> Case:
    """The same case, its arrays as views."""
    arrays = {name: view(getattr(case, name)) for name in ("query", "key", "value")}
    mx.eval(list(arrays.values()))
    return replace(case, **arrays)


def results(case: Case, view: View = lambda x: x) -> list[mx.array]:
    """Of forward and backward, the output's gradient a view, too."""
    problem, rng = case.problem, np.random.default_rng(case.seed)
    given = (case.query, case.key, case.value, case.rpb, case.lengths)
    out, lse, stats = gpu.forward(problem, *given)
    d_out = view(normal(rng, out.shape, problem.dtype))
    d_lse = normal(rng, lse.shape, mx.float32)
    grads = gpu.backward(problem, *given, out, stats, d_out, d_lse)
    return [out, lse, *(g for g in grads if g is not None)]


def unfused(case: Case, view: View = lambda x: x) -> list[mx.array]:
    """Of the separate products."""
    problem, rng = case.problem, np.random.default_rng(case.seed)
    logits = gpu.qk(problem, case.query, case.key, case.rpb, case.lengths)
    weights = normal(rng, logits.shape, problem.dtype)
    out = gpu.av(problem, weights, case.value, case.lengths)
    d_out = view(normal(rng, out.shape, problem.dtype))
    d_qk = gpu.qk_backward(problem, case.query, case.key, case.rpb, case.lengths, weights)
    d_av = gpu.av_backward(problem, weights, case.value, case.lengths, d_out)
    return [logits, out, *(g for g in d_qk if g is not None), *d_av]


def same_bits(got: list[mx.array], wanted: list[mx.array]) -> bool:
    return all(
        mx.array_equal(x.view(mx.uint8), y.view(mx.uint8)).item()
        for x, y in zip(got, wanted, strict=True)
    )


def packed(case: Case) -> Case:
    """The same case, its arrays parts of one."""
    whole = pack(case.problem, case.query, case.key, case.value)
    mx.eval(whole)
    query, key, value = unpack(case.problem, whole)
    return replace(case, query=query, key=key, value=value)


def joined_alike(case: Case) -> bool:
    """Whether one array of all gradients has the bits of three; of a case that is `packed`."""
    problem, rng = case.problem, np.random.default_rng(case.seed)
    given = (case.query, case.key, case.value, case.rpb, case.lengths)
    out, lse, stats = gpu.forward(problem, *given)
    d_out, d_lse = (normal(rng, x.shape, x.dtype) for x in (out, lse))
    *grads, d_rpb = gpu.backward(problem, *given, out, stats, d_out, d_lse)
    d_qkv, d_rpb_too = gpu.backward_packed(problem, *given, out, stats, d_out, d_lse)
    alike = same_bits([d_qkv], [pack(problem, *grads)])
    return alike and (d_rpb is None or same_bits([d_rpb_too], [d_rpb]))


def same_without_lse(case: Case) -> bool:
    """Whether a problem that has no LSE gets the bits of one whose LSE has no gradient."""
    problem, rng = case.problem, np.random.default_rng(case.seed)
    given = (case.query, case.key, case.value, case.rpb, case.lengths)
    out, lse, stats = gpu.forward(problem, *given)
    d_out = normal(rng, out.shape, problem.dtype)
    wanted = out, stats, *gpu.backward(problem, *given, out, stats, d_out, mx.zeros_like(lse))
    without = replace(problem, has_lse=False)
    out, none, stats = gpu.forward(without, *given)
    got = out, stats, *gpu.backward(without, *given, out, stats, d_out)
    there = ([x for x in each if x is not None] for each in (got, wanted))
    return none is None and same_bits(*there)

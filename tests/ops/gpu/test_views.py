"""Arrays that are views of others: kernels read them where they lie, and compute the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.metal import CONTIGUOUS, KERNELS, body
from natten_zoo.ops import gpu
from natten_zoo.ops.gpu import kernels
from tests.metal_emulator import options, record
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import FAMILIES, Case, check_attention, normal, random_cases, worst

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


def some_cases(family: int, count: int = 1) -> Iterator[Case]:
    return random_cases(FAMILIES[family], seed=300 + family, count=count)


# Of families with one kernel size: float32 in 1-D, float16 in 2-D, bfloat16 in 2-D by single lanes,
# float16 in 3-D.
@pytest.mark.parametrize("family", [0, 5, 12, 9], ids=lambda i: str(FAMILIES[i]))
@pytest.mark.parametrize("name", VIEWS)
def test_bits_of_views(metal, family, name):  # noqa: F811
    view = VIEWS[name]
    for case in some_cases(family, 3):
        views = seen(case, view)
        assert same_bits(results(views, view), results(case)), case.problem
        if FAMILIES[family].core.whole:
            assert same_bits(unfused(views, view), unfused(case)), case.problem
        wrong = worst(check_attention(views), case.problem.dtype)
        assert wrong is None, wrong


@pytest.mark.parametrize("family", [5, 12], ids=lambda i: str(FAMILIES[i]))
def test_one_head_for_all(metal, family):  # noqa: F811
    """Strides of zero: keys and values that are spread over heads."""
    for case in some_cases(family, 3):
        heads = case.problem.kv_heads
        one = {n: getattr(case, n)[..., :1, :] for n in ("key", "value")}
        spread = {n: mx.repeat(x, heads, -2) for n, x in one.items()}
        shape = {n: (*x.shape[:-2], heads, x.shape[-1]) for n, x in one.items()}
        lie = {n: mx.broadcast_to(x, shape[n]) for n, x in one.items()}
        assert same_bits(results(replace(case, **lie)), results(replace(case, **spread)))


def test_large_logits_of_views(metal):  # noqa: F811
    """Their products are taken once more, from where rows lie."""
    view = VIEWS["some channels, at no good address"]
    for family in (5, 12):
        with options(reconverges=not FAMILIES[family].core.whole):  # core_scalar.h says why
            for case in some_cases(family, 2):
                large = replace(case, query=case.query * 300, key=case.key * 30)
                assert same_bits(results(seen(large, view)), results(large))


@pytest.mark.parametrize("name", VIEWS)
def test_nothing_is_copied(metal, monkeypatch, name):  # noqa: F811
    """What a kernel is given is the memory of what the caller has."""
    given: list[tuple[str, mx.array]] = []
    real = kernels._as_wanted

    def watched(array: str, x: mx.array) -> mx.array:
        given.append((array, real(array, x)))
        return given[-1][1]

    case = seen(next(some_cases(5)), VIEWS[name])
    results(case)  # builds
    monkeypatch.setattr(kernels, "_as_wanted", watched)
    with record() as launches:
        results(case)
    assert len(launches) == 3
    assert [one.copied_bytes for one in launches] == [0, 0, 0]
    for array in ("query", "key", "value"):
        own = np.array(getattr(case, array), copy=False)
        taken = [np.array(x, copy=False) for n, x in given if n == array]
        assert len(taken) == 3
        assert all(np.shares_memory(own, x) for x in taken)


def test_every_other_input_is_contiguous():
    """A text names the strides of each of its inputs, or wants it contiguous."""
    for name, kernel in KERNELS.items():
        text = body(name)
        for array in kernel.inputs:
            assert (f"{array}_strides" in text) != (array in CONTIGUOUS), (name, array)

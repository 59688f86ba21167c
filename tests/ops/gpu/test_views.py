"""Arrays that are views of others: kernels read them where they lie, and compute the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import metal as texts
from natten_zoo import ops
from natten_zoo.layers import NeighborhoodAttention2D
from natten_zoo.metal import CONTIGUOUS, KERNELS, MATRIX, body, kernel_without
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import kernels, programs
from natten_zoo.ops.gpu.device import current, use_device
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import options, record
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401
from tests.metal_emulator.test_mutants import mutated
from tests.ops.finer import at_keys, fold, unfold

from .problems import (
    ATTENTION,
    FAMILIES,
    UNFUSED,
    Case,
    case_of,
    check_attention,
    normal,
    random_cases,
    worst,
)
from .views import (
    VIEWS,
    joined_alike,
    packed,
    results,
    same_bits,
    same_without_lse,
    seen,
    unfused,
)

FINER = [i for i, family in enumerate(FAMILIES) if family.finer]


def some_cases(number: int, count: int = 1) -> Iterator[Case]:
    """Problems of a family with the kernels that test_random builds."""
    family = FAMILIES[number]
    separate = family.core.whole and not family.finer
    functions = (*ATTENTION, *UNFUSED) if separate else ATTENTION
    return islice(random_cases(family, number, 28, functions), count)


# Of families with one kernel size: float32 in 1-D, float16 in 2-D, bfloat16 in 2-D by single lanes,
# float16 in 3-D; and finer queries, float16 in 2-D.
@pytest.mark.parametrize("family", [0, 5, 12, 9, FINER[1]], ids=lambda i: str(FAMILIES[i]))
@pytest.mark.parametrize("name", VIEWS)
def test_bits_of_views(metal, family, name):  # noqa: F811
    view = VIEWS[name]
    for case in some_cases(family, 3):
        views = seen(case, view)
        assert same_bits(results(views, view), results(case)), case.problem
        if FAMILIES[family].core.whole and not case.problem.finer:
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


@pytest.mark.parametrize(
    "family",
    [pytest.param(i, marks=[pytest.mark.slow] * (i != FINER[1])) for i in FINER],
    ids=lambda i: str(FAMILIES[i]),
)
def test_bits_of_finer_queries(metal, family):  # noqa: F811
    """Those of the same queries by cells, as heads, which nobody has to make of them."""
    for case in some_cases(family, 4):
        times = case.problem.finer
        folded = replace(case, problem=at_keys(case.problem), query=fold(case.query, times))
        given = (folded.query, folded.key, folded.value, folded.rpb, None)
        out, lse, stats = gpu.forward(folded.problem, *given)
        rng = np.random.default_rng(case.seed)
        d_out, d_lse = (normal(rng, unfold(x, times).shape, x.dtype) for x in (out, lse))
        ends = (fold(x, times) for x in (d_out, d_lse))
        d_query, *others = gpu.backward(folded.problem, *given, out, stats, *ends)
        by_query = [unfold(x, times) for x in (out, lse, d_query)]
        wanted = [*by_query, *(x for x in others if x is not None)]
        assert same_bits(results(case), wanted), case.problem


def test_places_at_no_good_address(metal):  # noqa: F811
    """A cell's first rows begin where 16 bytes do, its others don't: they move by elements."""
    hood = Neighborhood.of(1, 4)
    problem = Problem(hood, 1, (8,), 4, 2, 16, 24, 0.3, mx.float16, has_rpb=True, finer=(2,))
    case = case_of(problem)

    def view(x: mx.array) -> mx.array:
        more = mx.zeros((*x.shape[:-1], 4), x.dtype)
        lies = mx.contiguous(mx.concatenate([x, more], axis=-1).swapaxes(1, 2))
        mx.eval(lies)
        return lies.swapaxes(1, 2)[..., : x.shape[-1]]

    queries = view(case.query)
    assert np.array(queries, copy=False).strides[1] % 16 == 8
    assert same_bits(results(replace(case, query=queries), view), results(case))


def watched(monkeypatch) -> list[tuple[str, mx.array]]:
    """What kernels are given from now on, by its name."""
    given: list[tuple[str, mx.array]] = []
    real = kernels.launch

    def launch(kernel, plan, inputs, shapes):
        there = kernel_without(kernel, plan.template.absent)
        names = (name for name in there.inputs if name != "params")
        given.extend(zip(names, inputs, strict=True))
        return real(kernel, plan, inputs, shapes)

    monkeypatch.setattr(kernels, "launch", launch)
    return given


@pytest.mark.parametrize("family", [5, FINER[1]], ids=lambda i: str(FAMILIES[i]))
@pytest.mark.parametrize("name", VIEWS)
def test_nothing_is_copied(metal, monkeypatch, name, family):  # noqa: F811
    """What a kernel is given is the memory of what the caller has; what it writes, the caller's."""
    case = seen(next(some_cases(family)), VIEWS[name])
    results(case)  # builds
    given = watched(monkeypatch)
    with record() as launches:
        out, lse, d_query, *_ = results(case)
    assert len(launches) == 3
    assert out.shape[:-1] == lse.shape == d_query.shape[:-1] == case.query.shape[:-1]
    assert [one.copied_bytes for one in launches] == [0, 0, 0]
    for array in ("query", "key", "value"):
        own = np.array(getattr(case, array), copy=False)
        taken = [np.array(x, copy=False) for n, x in given if n == array]
        assert len(taken) == 3
        assert all(np.shares_memory(own, x) for x in taken)


# With values as wide as keys: by matrices in 1-D, 2-D and 3-D, and by single lanes.
@pytest.mark.parametrize("family", [0, 3, 5, 9, 11], ids=lambda i: str(FAMILIES[i]))
def test_bits_of_one_array_of_gradients(metal, family):  # noqa: F811
    for case in map(packed, some_cases(family, 4)):
        assert joined_alike(case), case.problem


@pytest.mark.parametrize("family", [0, 3, 5, 9, 11], ids=lambda i: str(FAMILIES[i]))
def test_bits_without_an_lse(metal, family):  # noqa: F811
    for case in some_cases(family, 2):
        assert same_without_lse(case), case.problem


def test_nobody_asks_for_an_lse_that_is_not_returned(metal, monkeypatch):  # noqa: F811
    """Neither an operator nor a layer; and its gradient is no array of zeros."""
    given = watched(monkeypatch)
    layer, x = NeighborhoodAttention2D(16, 2, 3), mx.random.normal((1, 9, 9, 16))
    q = mx.random.normal((1, 9, 9, 2, 8))
    with ops.use_backend("fast_metal"):
        mx.eval(mx.grad(lambda x: layer(x).sum())(x))
        mx.eval(mx.grad(lambda q: ops.na2d(q, q, q, 3).sum())(q))
    names = {name for name, _ in given}
    assert "stats" in names and not names & {"d_lse", "rpb", "lengths"}


def test_long_launches_of_one_array(metal):  # noqa: F811
    case = packed(next(some_cases(5)))
    short = replace(current(), longest_launch=20_000)

    def gradient() -> mx.array:
        given = (case.query, case.key, case.value, case.rpb, case.lengths)
        out, lse, stats = gpu.forward(case.problem, *given)
        return gpu.backward_packed(case.problem, *given, out, stats, out, lse)[0]

    with record() as launches:
        wanted = gradient()
    with use_device(short), record() as cut:
        got = gradient()
    assert len(cut) > len(launches) + 2
    assert same_bits([got], [wanted])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_copies_nothing(metal, monkeypatch, bias, stride):  # noqa: F811
    """From the projection to its gradient: three launches, on the projection's own memory."""
    layer = NeighborhoodAttention2D(32, 2, 3, stride, rel_pos_bias=bias)
    qkv = layer.project_packed(mx.random.normal((1, 9, 8, 32)))
    mx.eval(qkv)
    taken = watched(monkeypatch)
    monkeypatch.setattr(mx, "concatenate", None)  # nobody joins anything

    with record() as launches:
        mx.eval(mx.grad(lambda x: layer.attend_packed(x).sum())(qkv))
    names = [one.name for one in launches if one.counts.threadgroups > 1]
    assert [name.split("_", 3)[3].rpartition("_")[0] for name in names] == [
        "forward", "backward_query", "backward_key",
    ]  # fmt: skip
    assert sum(one.copied_bytes for one in launches) == 0
    own = np.array(qkv, copy=False)
    views = [np.array(x, copy=False) for n, x in taken if n in ("query", "key", "value")]
    assert sum(np.shares_memory(own, x) for x in views) == len(views) == 9


def test_every_other_input_is_contiguous():
    """A text names the strides of each of its inputs, or wants it contiguous."""
    for name, kernel in KERNELS.items():
        text = body(name)
        for array in kernel.inputs:
            assert (f"{array}_strides" in text) != (array in CONTIGUOUS), (name, array)


@pytest.mark.parametrize("index", [5, 9], ids=lambda i: str(FAMILIES[i]))
def test_what_a_caller_brings_may_lie_anyhow(metal, index):  # noqa: F811
    """MLX makes that contiguous for the kernels, and is not asked of what kernels wrote."""
    case = next(some_cases(index))
    problem, rng = case.problem, np.random.default_rng(case.seed)
    qkv, extras = (case.query, case.key, case.value), {"rpb": case.rpb, "lengths": case.lengths}
    out, _, stats = gpu.forward(problem, *qkv, **extras)
    d_lse = normal(rng, problem.queries, mx.float32)
    weights = normal(rng, (*problem.queries, problem.neighborhood.volume), problem.dtype)

    def computed(lie: Callable[[mx.array | None], mx.array | None]) -> list[mx.array]:
        given = {name: lie(x) for name, x in extras.items()}
        lengths, attn = given["lengths"], lie(weights)
        of_out = {"out": out, "stats": stats, "d_out": out, "d_lse": lie(d_lse)}
        found = [
            *gpu.forward(problem, *qkv, **given),
            *gpu.backward(problem, *qkv, **given, **of_out),
            gpu.av(problem, attn, case.value, lengths),
            *gpu.qk_backward(problem, *qkv[:2], **given, d_logits=attn),
            *gpu.av_backward(problem, attn, case.value, lengths, out),
        ]
        return [x for x in found if x is not None]

    assert same_bits(computed(transposed), computed(lambda x: x))


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """In the emulator what CUDA's lanes do otherwise: steps of 32 bits, rows kept in registers."""
    package, unit = texts.source, r"template <int WIDE>\nstruct na_unit .*?\n};\n"
    wanted = re.search(unit + r"template <>.*?\n};\n", package("dialect_cuda.h"), re.S)
    assert wanted
    changes = {
        "dialect_metal.h": (unit, wanted[0]),
        "core_matrix.h": ("NA_KEEPS_MINE = 0", "NA_KEEPS_MINE = 1"),
    }

    def source(name: str) -> str:
        text = package(name)
        if name in changes:
            text, count = re.subn(*changes[name], text, flags=re.S)
            assert count == 1
        return text

    with mock.patch.object(texts, "source", source), mutated(None, MATRIX):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 5, 9], ids=lambda i: str(FAMILIES[i]))
@pytest.mark.parametrize("name", ["some heads", "backwards"])
def test_what_cuda_does_otherwise(metal, index, name):  # noqa: F811
    family, view = FAMILIES[index], VIEWS[name]
    case = next(some_cases(index))
    with as_on_cuda():
        wrong = worst(check_attention(case), family.dtype)
        assert wrong is None, f"{wrong} for {case.problem}"
        assert same_bits(results(seen(case, view), view), results(case))


def transposed(x: mx.array | None) -> mx.array | None:
    """The same numbers, of which neighbors on the last axis lie apart."""
    if x is None:
        return None
    lies = mx.contiguous(x.T)
    mx.eval(lies)
    return lies.T


def test_what_kernels_wrote_is_contiguous(metal):  # noqa: F811
    case = next(some_cases(5))
    program = programs.program("backward", case.problem, current())
    wanted = {"d_lse", *(n for n in ("rpb", "lengths") if getattr(case, n) is not None)}
    assert frozenset.union(*(step.loose for step in program.steps)) == wanted

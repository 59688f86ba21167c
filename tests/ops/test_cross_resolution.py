"""Queries on a finer map than the keys: the same as keys upsampled and dilated, on every tier."""

import io
import re
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import Neighborhood, backend, pure
from natten_zoo.ops.problem import Problem
from tests.ops.cases import float64, on_each_tier, tiers
from tests.ops.finer import at_keys, fold, unfold
from tests.reference import Reference

# spatial of the keys, queries per cell, kernel size, and what else the operator is given
CASES = {
    "1-D": ((9,), (4,), (3,), {}),
    "2-D, other factors on each axis": ((5, 6), (2, 3), (3, 4), {}),
    "2-D, one axis as it is": ((6, 5), (1, 4), (5, 3), {"is_causal": (True, False)}),
    "2-D, dilated": ((9, 7), (3, 2), (4, 3), {"dilation": (2, 1)}),
    "3-D": ((3, 4, 3), (2, 1, 2), (3, 3, 2), {"window_stride": (1, 2, 1)}),
}


def arrays(spatial, times, kernel, seed=0, heads=4, kv_heads=2, dim=6, value_dim=5):
    """Query, key, value, bias and the output's gradient; values are wider or narrower than keys."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    fine = [n * r for n, r in zip(spatial, times, strict=True)]
    return [
        draw(2, *fine, heads, dim),
        draw(2, *spatial, kv_heads, dim),
        draw(2, *spatial, kv_heads, value_dim),
        draw(heads, *(2 * k - 1 for k in kernel)),
        draw(2, *fine, heads, value_dim),
    ]


def upsampled(x, times):
    for axis, r in enumerate(times, start=1):
        x = np.repeat(x, r, axis=axis)
    return x


def summed(x, times):
    """The gradient of `upsampled`."""
    for axis, r in enumerate(times, start=1):
        x = x.reshape(*x.shape[:axis], x.shape[axis] // r, r, *x.shape[axis + 1 :]).sum(axis + 1)
    return x


def expected(spatial, times, kernel, given, options):
    """Output, LSE and gradients by the definition: large pixels, dilated by the factors."""
    query, key, value, rpb, d_out = given
    flags = options.get("is_causal", (False,) * len(times))
    steps = options.get("window_stride", (1,) * len(times))
    dilation = options.get("dilation", (1,) * len(times))
    fine = tuple(r * d for r, d in zip(times, dilation, strict=True))
    ref = Reference(
        query.shape[1:-2], kernel, fine, (1,) * len(times), steps, flags, query.shape[-1] ** -0.5
    )
    key, value = (upsampled(x, times) for x in (key, value))
    out, lse = ref.forward(query, key, value, rpb)
    d_q, d_k, d_v, d_b = ref.backward(query, key, value, rpb, d_out, np.zeros_like(lse))
    return out, lse, d_q, summed(d_k, times), summed(d_v, times), d_b


@on_each_tier(CASES, quick=("1-D", "3-D"))
def test_is_attention_to_upsampled_keys(name, tier):
    spatial, times, kernel, options = CASES[name]
    given = arrays(spatial, times, kernel)
    attend = getattr(ops, f"na{len(spatial)}d")

    def function(query, key, value, rpb):
        return list(attend(query, key, value, kernel, rpb=rpb, return_lse=True, **options))

    with ops.use_backend(tier):
        *inputs, d_out = map(mx.array, given)
        cotangents = [d_out, mx.zeros(d_out.shape[:-1])]
        (out, lse), gradients = mx.vjp(function, inputs, cotangents)
    wanted = expected(spatial, times, kernel, given, options)
    for ours, reference in zip([out, lse, *gradients], wanted, strict=True):
        scale = max(1, np.abs(reference).max())
        assert ours.shape == reference.shape
        assert np.abs(float64(ours) - reference).max() / scale < 2e-6


@pytest.mark.parametrize("times", [(2,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("tier", tiers())
def test_places_of_a_cell_are_heads(tier, times):
    """As `Problem` says: the bits of the problem on the keys' map, its heads in their order."""
    rank, places = len(times), int(np.prod(times))
    spatial = (6, 5, 4)[:rank]
    problem = Problem(
        Neighborhood.of(rank, 3), 2, spatial, 4 * places, 2, 8, 12, 0.3, mx.float32,
        has_rpb=True, finer=times,
    )  # fmt: skip
    key, value = (mx.random.normal((2, *spatial, 2, dim)) for dim in (8, 12))
    query = mx.random.normal((*problem.queries, 8))
    rpb = mx.random.normal((problem.heads, *(5,) * rank))
    chosen, coarse = backend._tier(tier), at_keys(problem)
    assert problem.queries[-1] == 4
    found = chosen.forward(problem, query, key, value, rpb, None)
    folded = chosen.forward(coarse, fold(query, times), key, value, rpb, None)
    assert all(mx.array_equal(x, unfold(y, times)) for x, y in zip(found, folded, strict=True))
    d_out, d_lse = mx.random.normal(found[0].shape), mx.random.normal(found[1].shape)
    rest = (found[0], found[2], d_out, d_lse)
    d_query, *others = chosen.backward(problem, query, key, value, rpb, None, *rest)
    rest = (fold(x, times) for x in rest)
    wanted, *others_too = chosen.backward(coarse, fold(query, times), key, value, rpb, None, *rest)
    assert mx.array_equal(d_query, unfold(wanted, times))
    assert all(map(mx.array_equal, others, others_too))


def primitives(*arrays):
    """How many of each kind MLX would compute, by its own drawing of them."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return Counter(re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue()))


def memory(*arrays):
    """Bytes that are held at most, beyond those before, while arrays are computed."""
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(*arrays)
    return mx.get_peak_memory() - before


@pytest.mark.skipif("nanobind" not in tiers(), reason="the compiled tier is not built")
def test_the_compiled_tier_copies_nothing():
    """Of the queries, the output and its gradient: one primitive each way, and no more memory.

    `Copy` is how MLX traces; it shares memory.
    """
    query, key, value, _, d_out = map(
        mx.array, arrays((8, 7), (8, 6), (5, 3), dim=16, value_dim=32)
    )
    d_lse = mx.zeros(d_out.shape[:-1])
    mx.eval(query, key, value, d_out, d_lse)
    attend = lambda *x: list(ops.na2d(*x, (5, 3), return_lse=True))  # noqa: E731
    with ops.use_backend("nanobind"):
        assert primitives(*attend(query, key, value)) == {"NattenAttention": 1}
        (out, lse), gradients = mx.vjp(attend, [query, key, value], [d_out, d_lse])
        both = primitives(*gradients) - Counter(Copy=3)
        assert both == {"NattenAttention": 1, "NattenAttentionBackward": 1}
        held = memory(out, lse)
        assert held == pytest.approx(out.nbytes + 3 * lse.nbytes, rel=0.05)  # with two stats a row
        assert memory(*gradients) == pytest.approx(sum(x.nbytes for x in gradients), rel=0.05)


def test_the_pure_tier_copies_what_it_copies_of_heads():
    """Its tiles are gathered, and put back in order, on every map: no primitive comes on top."""
    hood = Neighborhood.of(2, 3, dilation=2)
    problem = Problem(hood, 1, (9, 8), 24, 2, 8, 8, 0.3, mx.float32, finer=(3, 2))
    key = mx.random.normal((1, 9, 8, 2, 8))
    query = mx.random.normal((*problem.queries, 8))
    mx.eval(query, key)
    found = primitives(*pure.forward(problem, query, key, key, None, None))
    heads = fold(query, problem.finer)
    mx.eval(heads)
    folded = primitives(*pure.forward(at_keys(problem), heads, key, key, None, None))
    assert found["Gather"] > 0
    assert found <= folded


def test_additional_keys_and_compiled():
    query, key, value, *_ = map(mx.array, arrays((5, 4), (2, 2), (3, 3), heads=2))
    more = mx.random.normal((2, 3, 2, 6)), mx.random.normal((2, 3, 2, 5))
    options = {"additional_keys": more[0], "additional_values": more[1]}
    coarse = lambda q, k, v: ops.na2d(q, k, v, 3, **options)  # noqa: E731
    fine = ops.na2d(
        query,
        *(mx.array(upsampled(np.array(x), (2, 2))) for x in (key, value)),
        kernel_size=3,
        dilation=2,
        **options,
    )
    assert mx.allclose(coarse(query, key, value), fine, atol=1e-5)
    assert mx.array_equal(mx.compile(coarse)(query, key, value), coarse(query, key, value))


def test_what_does_not_fit_is_named():
    query, key, value, *_ = map(mx.array, arrays((5, 6), (2, 2), (3, 3)))
    with pytest.raises(
        ValueError, match=r"\[na2d\] 'query' must have as many .* \(10, 12\) and \(5, 5\)"
    ):
        ops.na2d(query, key[:, :, :5], value[:, :, :5], 3)
    with pytest.raises(ValueError, match=r"\[na2d\] 'query' must have as many"):
        ops.na2d(key, query, query, 3)  # keys that are finer
    with pytest.raises(ValueError, match=r"\[na2d\] 'stride' must be 1 where 'query' is finer"):
        ops.na2d(query, key, value, 3, stride=2)
    with pytest.raises(ValueError, match=r"\[na2d\] the number of 'query' heads"):
        ops.na2d(query[..., :3, :], key, value, 3)
    with pytest.raises(ValueError, match=r"'key' and 'value' must have the same batch"):
        ops.na2d(query, key, value[:, :4], 3)
    with pytest.raises(TypeError, match=r"\[na2d\] arrays must have one dtype"):
        ops.na2d(query.astype(mx.float16), key, value, 3)
    with pytest.raises(TypeError, match=r"\[na2d\] 'query' must be an mx.array"):
        ops.na2d(np.array(query), key, value, 3)
    with pytest.raises(ValueError, match=r"\[na2d_qk\] 'query' and 'key' must have the same batch"):
        ops.na2d_qk(query, key, 3)


@pytest.mark.parametrize("tier", tiers())
def test_windows_that_are_the_whole_map(tier):
    """There it is attention of all queries to all keys, wherever they lie."""
    query, key, value, *_ = map(mx.array, arrays((4, 3), (2, 3), (4, 3)))
    with ops.use_backend(tier):
        out, lse = ops.na2d(query, key, value, -1, return_lse=True)
    flat = [x.flatten(1, 2) for x in (query, key, value)]
    wanted, wanted_lse = ops.attention(*flat, return_lse=True)
    assert out.shape == (*query.shape[:-1], 5)
    assert mx.allclose(out.flatten(1, 2), wanted, atol=1e-5)
    assert mx.allclose(lse.flatten(1, 2), wanted_lse, atol=1e-5)


@pytest.mark.parametrize("tier", tiers())
def test_mapped_and_empty(tier):
    each = [list(map(mx.array, arrays((5, 4), (2, 3), (3, 3), seed))) for seed in range(3)]
    query, key, value, rpb, _ = each[0]
    loss = lambda q, k, v, b: (ops.na2d(q, k, v, 3, rpb=b) ** 2).sum()  # noqa: E731
    gradient = mx.grad(loss, (0, 1, 2, 3))
    many = [mx.stack(list(xs)) for xs in zip(*each, strict=True)][:3]
    with ops.use_backend(tier):
        for axes in ((0, 0, 0, None), (0, None, 0, None)):
            given = [x if a == 0 else x[0] for x, a in zip(many, axes, strict=False)]
            found = mx.vmap(gradient, axes)(*given, rpb)
            for i in range(3):
                one = [x[i] if a == 0 else x for x, a in zip(given, axes, strict=False)]
                pairs = zip(found, gradient(*one, rpb), strict=True)
                assert all(mx.allclose(x[i], y, atol=1e-4) for x, y in pairs)
        none = gradient(query[:0], key[:0], value[:0], rpb)
    assert [x.shape for x in none] == [query[:0].shape, key[:0].shape, value[:0].shape, rpb.shape]


def test_elsewhere_queries_lie_on_the_map_of_their_keys():
    """Not that of another operator, even where `na2d` was asked the same before."""
    query, key, value, *_ = map(mx.array, arrays((5, 4), (2, 2), (3, 3)))
    ops.na2d(query, key, value, 3)
    sizes = [(5, 4), (3, 4)]
    with pytest.raises(ValueError, match=r"\[na2d_varlen\] 'query' and 'key' must have the same"):
        ops.na2d_varlen(query, key, value, sizes, 3)

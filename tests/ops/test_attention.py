"""`na1d`, `na2d`, `na3d` and their varlen kin on every tier, against float64."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import autograd, backend
from natten_zoo.ops.problem import Problem
from natten_zoo.ops.pure import schedule
from tests.ops.cases import (
    CASES,
    EACH_TIER,
    EACH_TRACED_TIER,
    RANKED,
    TOLERANCE,
    attention,
    attention_error,
    emulated,
    on_each_tier,
    plain_error,
    tiers,
)

PLAIN = [n for n, c in CASES.items() if c.lengths is None and max(c.head_dim, c.value_dim) < 200]


def runs(case, tier):
    """Skips where a tier says that it cannot run a case; the pure tier must run all."""
    reason = backend.why_not(tier, case.problem)
    if reason is not None:
        assert tier != "pure"
        pytest.skip(f"{tier}: {reason}")


@on_each_tier(CASES)
def test_outputs_and_gradients(name, tier):
    runs(CASES[name], tier)
    worst = attention_error(CASES[name], tier)
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "tier"),
    [
        *product(PLAIN, tiers()),
        *product(["2-D"], emulated()),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in product(("3-D", "GQA"), emulated())),
    ],
)
def test_half_precision_is_at_most_twice_as_far_as_plain_half(name, dtype, tier):
    case = replace(CASES[name], dtype=dtype)
    runs(case, tier)
    ours, plain = attention_error(case, tier), plain_error(case)
    # Where rounding the result is all there is, the plain error can happen to be tiny.
    rounding = mx.finfo(getattr(mx, dtype)).eps / 2
    assert all(e <= 2 * max(plain[k], rounding) for k, e in ours.items()), (ours, plain)


@EACH_TIER
def test_gradients_are_the_same_bits_in_every_run(tier):
    case = replace(CASES["2-D"], spatial=(20, 24), batch=3)
    inputs = case.arrays("query", "key", "value", "rpb")
    cotangents = case.arrays("d_out", "d_lse")
    with ops.use_backend(tier):
        first, *others = (
            [np.array(x) for xs in mx.vjp(attention(case), inputs, cotangents) for x in xs]
            for _ in range(4)
        )
    assert all(np.array_equal(x, y) for other in others for x, y in zip(first, other, strict=True))


@EACH_TIER
@pytest.mark.parametrize("name", ["1-D", "2-D", "causal", "varlen"])
def test_finite_differences(name, tier):
    case = CASES[name]
    inputs, cotangents = case.arrays("query", "key", "value", "rpb"), case.arrays("d_out")

    def loss(*arrays):
        out, lse = attention(case)(*arrays)
        lse = mx.where(mx.isinf(lse), 0, lse)
        return (out * cotangents[0]).sum() + (lse * lse).sum()

    def exactly(*arrays):  # the sum of a few thousand in float32 has steps of 0.004 per 0.06
        out, lse = (np.array(x, np.float64) for x in attention(case)(*arrays))
        return (out * np.array(cotangents[0])).sum() + (lse[np.isfinite(lse)] ** 2).sum()

    with ops.use_backend(tier):
        grads = mx.grad(loss, argnums=list(range(len(inputs))))(*inputs)
        for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
            step = mx.random.normal(x.shape, key=mx.random.key(i))
            step = step / mx.sqrt((step * step).sum())
            ends = [exactly(*inputs[:i], x + h * step, *inputs[i + 1 :]) for h in (-0.03, 0.03)]
            slope = (ends[1] - ends[0]) / 0.06
            assert slope == pytest.approx((grad * step).sum().item(), rel=0.02, abs=0.01)


@EACH_TRACED_TIER
def test_a_compiled_function_serves_other_shapes(tier):
    def loss(q, k, v, rpb):
        return (ops.na2d(q, k, v, (3, 5), rpb=rpb) ** 2).sum()

    plain = mx.value_and_grad(loss, argnums=(0, 1, 2, 3))
    compiled = mx.compile(plain)
    with ops.use_backend(tier):
        for spatial in ((9, 12), (14, 7), (9, 12)):
            case = replace(CASES["2-D"], spatial=spatial)
            inputs = case.arrays("query", "key", "value", "rpb")
            want, got = plain(*inputs), compiled(*inputs)
            for x, y in zip([want[0], *want[1]], [got[0], *got[1]], strict=True):
                assert mx.allclose(x, y, rtol=1e-5, atol=1e-5)


@EACH_TRACED_TIER
def test_one_compiled_varlen_function_serves_all_sizes(tier):
    case = CASES["varlen"]
    inputs = case.arrays("query", "key", "value")
    compiled = mx.compile(lambda q, k, v, sizes: ops.na2d_varlen(q, k, v, sizes, 3))
    with ops.use_backend(tier):
        for sizes in ([[11, 9], [5, 8], [3, 3]], [[4, 4], [11, 3], [7, 9]]):
            out = compiled(*inputs, mx.array(sizes))
            for b, (h, w) in enumerate(sizes):
                alone = ops.na2d(*(x[b : b + 1, :h, :w] for x in inputs), 3)
                assert mx.allclose(out[b : b + 1, :h, :w], alone, atol=1e-5)
                assert not out[b, h:].any() and not out[b, :, w:].any()


@EACH_TIER
def test_what_lies_outside_a_sample_does_not_matter(tier):
    case = replace(CASES["varlen"], has_rpb=False)
    inputs, cotangents = case.arrays("query", "key", "value"), case.arrays("d_out", "d_lse")
    places = np.indices(case.spatial)[None]  # [1, rank, *spatial]
    outside = (places >= np.array(case.lengths)[:, :, None, None]).any(axis=1)
    outside = mx.array(outside[..., None, None])
    dirty = [mx.where(outside, mx.nan, x) for x in inputs]
    with ops.use_backend(tier):
        want, got = (mx.vjp(attention(case), xs, cotangents) for xs in (inputs, dirty))
    for x, y in zip([*want[0], *want[1]], [*got[0], *got[1]], strict=True):
        assert mx.array_equal(x, y)


@EACH_TRACED_TIER
@pytest.mark.parametrize("has_rpb", [False, True])
def test_vmap_is_a_loop(tier, has_rpb):
    case = replace(CASES["1-D"], has_rpb=has_rpb)
    pairs = [case.arrays("query", "key", "value", "rpb"),
             replace(case, seed=1).arrays("query", "key", "value", "rpb")]  # fmt: skip
    stacked = [mx.stack(xs, axis=1) for xs in zip(*pairs, strict=True)]

    def loss(*arrays):
        out, lse = attention(case)(*arrays)
        return (out * out).sum() + lse.sum()

    grad = mx.grad(loss, argnums=list(range(len(stacked))))
    with ops.use_backend(tier):
        outs = mx.vmap(attention(case), in_axes=(1,) * len(stacked))(*stacked)
        grads = mx.vmap(grad, in_axes=(1,) * len(stacked))(*stacked)
        for i, one in enumerate(pairs):
            for x, y in zip(attention(case)(*one), outs, strict=True):
                assert mx.allclose(x, y[i], atol=1e-5)
            for x, y in zip(grad(*one), grads, strict=True):
                assert mx.allclose(x, y[i], atol=1e-4)


@EACH_TRACED_TIER
@pytest.mark.parametrize("rpb_axis", [None, 0])
def test_gradients_of_vmap_are_sums_over_a_loop(tier, rpb_axis):
    x, rpb = mx.random.normal((3, 2, 9, 2, 8)), mx.random.normal((3, 2, 5))
    rpb = rpb[0] if rpb_axis is None else rpb

    def loss(x, rpb):
        out, lse = ops.na1d(x, x, x, 3, rpb=rpb, return_lse=True)
        return (out * out).sum() + lse.sum()

    def mapped(x, rpb):
        return mx.vmap(loss, (0, rpb_axis))(x, rpb).sum()

    def looped(x, rpb):
        return sum(loss(x[i], rpb if rpb_axis is None else rpb[i]) for i in range(3))

    with ops.use_backend(tier):
        got, want = (mx.grad(f, (0, 1))(x, rpb) for f in (mapped, looped))
        assert all(mx.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("has_rpb", [False, True])
def test_vmap_where_the_pure_tier_works_in_parts(has_rpb, monkeypatch):
    monkeypatch.setattr(schedule, "CPU_SCORES", 500)
    monkeypatch.setattr(schedule, "GPU_SCORES", 500)
    test_vmap_is_a_loop("pure", has_rpb)


@EACH_TIER
def test_an_empty_batch(tier):
    case = replace(CASES["2-D"], batch=0)
    inputs = case.arrays("query", "key", "value", "rpb")
    with ops.use_backend(tier):
        outs, grads = mx.vjp(attention(case), inputs, case.arrays("d_out", "d_lse"))
    assert [x.shape for x in outs] == [(0, 9, 12, 2, 4), (0, 9, 12, 2)]
    assert [x.shape for x in grads] == [x.shape for x in inputs]
    assert not grads[-1].any()


@EACH_TIER
def test_gradients_of_vmap_of_an_empty_batch(tier):
    x, rpb = mx.zeros((3, 0, 9, 2, 8)), mx.ones((3, 2, 5))
    out = mx.vmap(lambda x, rpb: ops.na1d(x, x, x, 3, rpb=rpb))
    with ops.use_backend(tier):
        d_x, d_rpb = mx.grad(lambda x, rpb: out(x, rpb).sum(), (0, 1))(x, rpb)
    assert d_x.shape == x.shape and d_rpb.shape == rpb.shape and not d_rpb.any()


@EACH_TIER
def test_additional_keys_are_seen_by_every_query(tier):
    case = CASES["2-D"]
    q, k, v = case.arrays("query", "key", "value")
    more_k, more_v = mx.random.normal((2, 2, 5, 2, 4), key=mx.random.key(0))
    with ops.use_backend(tier):
        out, lse = ops.na2d(
            q, k, v, (3, 5), additional_keys=more_k, additional_values=more_v, return_lse=True
        )
        # The same keys in sight of a whole-axis window: attention by hand for one query.
        near = [x[1, 2:5, 3:8, 1].reshape(15, 4) for x in (k, v)]
    keys, values = (
        mx.concatenate([a, b[1, :, 1]]) for a, b in zip(near, (more_k, more_v), strict=True)
    )
    logits = keys @ q[1, 3, 5, 1] * 0.5
    assert mx.allclose(out[1, 3, 5, 1], mx.softmax(logits) @ values, atol=1e-5)
    assert mx.allclose(lse[1, 3, 5, 1], mx.logsumexp(logits), atol=1e-5)


@EACH_TIER
@pytest.mark.parametrize("op", ["na2d", "na2d_qk", "na2d_av"])
def test_a_gradient_nobody_asked_for_is_not_needed(op, tier):
    x = mx.random.normal((1, 8, 8, 1, 4))
    weights = mx.random.normal((1, 8, 8, 1, 9))
    calls = {
        "na2d": lambda y: ops.na2d(x, y, x, 3),
        "na2d_qk": lambda y: ops.na2d_qk(x, y, 3),
        "na2d_av": lambda y: ops.na2d_av(weights, y, 3),
    }
    with ops.use_backend(tier):
        grad = mx.grad(lambda y: calls[op](y).sum())(x)
    assert grad.shape == x.shape and mx.isfinite(grad).all()


def test_no_zeros_are_computed_for_what_callers_do_not_get():
    """One kernel fewer in each layer's training step: the third output has no gradient."""
    tier = SimpleNamespace(
        NAME="fake",
        differentiable=lambda op, problem: None,
        forward=lambda problem, q, k, v, rpb, lengths: (q, q[..., 0], q[..., :2]),
        backward=lambda problem, q, k, v, rpb, lengths, out, stats, d_out, d_lse: (
            *[d_out] * 3,
            None,
        ),
    )
    x = mx.random.normal((1, 8, 2, 4))
    problem = Problem(ops.Neighborhood.of(1, 3), 1, (8,), 2, 2, 4, 4, 0.5, mx.float32)
    run = autograd.attention(problem, tier)
    _, gradients = mx.vjp(lambda *arrays: [run(arrays, None, None)[0]], [x] * 3, [x])
    drawing = io.StringIO()
    mx.export_to_dot(drawing, *gradients)
    assert drawing.getvalue().count('label ="Full"') == 1  # for the LSE


@EACH_TRACED_TIER
def test_gradients_of_gradients_are_refused(tier):
    x = mx.random.normal((1, 8, 2, 4))
    slope = mx.grad(lambda q: (ops.na1d(q, x, x, 3) ** 2).sum())
    for f, y in ((slope, x), (mx.compile(slope), x), (mx.vmap(slope), x[None])):
        with (
            ops.use_backend(tier),
            pytest.raises(NotImplementedError, match="gradients of gradients"),
        ):
            mx.grad(lambda q: f(q).sum())(y)  # noqa: B023


@EACH_TRACED_TIER
def test_forward_mode_is_refused_in_our_words(tier):
    x = mx.random.normal((1, 8, 2, 4))
    rpb = mx.zeros((2, 5))
    calls = (
        lambda q: ops.na1d(q, x, x, 3),
        lambda q: ops.na1d(x, x, q, 3, rpb=rpb),
        lambda q: ops.na1d_qk(q, x, 3),
        lambda q: ops.na1d_av(mx.zeros((1, 8, 2, 3)), q, 3),
        mx.grad(lambda q: ops.na1d(q, x, x, 3).sum()),
    )
    for call in calls:
        with (
            ops.use_backend(tier),
            pytest.raises(NotImplementedError, match=r"forward-mode derivatives \(mx\.jvp\)"),
        ):
            mx.jvp(call, [x], [x])


@EACH_TIER
def test_large_logits_and_masks_by_bias(tier):
    q, k, v = mx.random.normal((3, 1, 20, 2, 8), key=mx.random.key(0))
    mask = mx.where(mx.arange(9) == 4, 0.0, -mx.inf)  # of five keys only the query itself
    with ops.use_backend(tier):
        alone = ops.na1d(q, k, v, 5, rpb=mx.stack([mask, mask]))
        largest = ops.na1d(1e6 * q, 1e6 * k, v, 5)
        seen = mx.argmax(ops.na1d_qk(q, k, 5), axis=-1)  # [1, 20, 2]
    assert mx.allclose(alone, v, atol=1e-6)
    first = mx.array(ops.Neighborhood.of(1, 5).windows(0, 20)[0])
    place = (first[:, None] + seen[0])[..., None]
    assert mx.allclose(largest[0], mx.take_along_axis(v[0], place, axis=0), atol=1e-5)


@EACH_TIER
def test_a_bias_never_reaches_beyond_a_window(tier):
    x = mx.random.normal((1, 20, 2, 8), key=mx.random.key(0))
    for bias in (-1e31, -2e38, -mx.inf):
        with ops.use_backend(tier):
            out = ops.na1d(x, x, x, 3, rpb=mx.full((2, 5), bias))
        assert mx.allclose(out[0, 5], x[0, 4:7].mean(axis=0), atol=1e-6)


def test_the_pure_tier_keeps_its_memory_small():
    """Forward and backward of a large kernel within six times the inputs, where a copy of the keys
    and values per query takes more than three hundred times."""
    arrays = [mx.random.normal((8, 32, 32, 4, 32)) for _ in range(4)]
    with ops.use_backend("pure"):
        mx.eval(arrays)
        mx.clear_cache()
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        mx.eval(mx.vjp(lambda *qkv: [ops.na2d(*qkv, 13)], arrays[:3], arrays[3:]))
    assert mx.get_peak_memory() - held < 6 * 3 * arrays[0].nbytes


def test_ranked_covers_all_ranks():
    assert all(len(functions) == 4 for functions in RANKED.values())


@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D", "GQA", "varlen", "dilation leaves a rest"])
def test_parts_on_several_streams(name, monkeypatch):
    streams = [mx.new_thread_local_stream(mx.cpu) for _ in range(2)]
    monkeypatch.setattr(schedule, "more_streams", lambda: streams)
    monkeypatch.setattr(schedule, "LEAST_SCORES", 1)
    with mx.stream(mx.cpu):
        worst = attention_error(CASES[name], "pure")
        assert max(worst.values()) < TOLERANCE, worst
        with ThreadPoolExecutor(1) as other:
            assert other.submit(attention_error, CASES[name], "pure").result() == worst

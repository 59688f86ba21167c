"""`na*d_qk`, `na*d_av` and their biased kin."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import backend
from tests.ops.cases import (
    CASES,
    EACH_TIER,
    EACH_TRACED_TIER,
    TOLERANCE,
    av_error,
    on_each_tier,
    options,
    qk_error,
)

WHOLE = [name for name, case in CASES.items() if case.lengths is None]


@on_each_tier(WHOLE)
@pytest.mark.parametrize("error", [qk_error, av_error])
def test_outputs_and_gradients(error, name, tier):
    case = CASES[name]
    if backend.why_not(tier, case.problem) is not None:
        pytest.skip(backend.why_not(tier, case.problem))
    assert max(error(case, tier)) < TOLERANCE


@EACH_TIER
@pytest.mark.parametrize("name", ["2-D", "causal", "GQA", "stride", "3-D"])
def test_the_halves_make_a_whole(name, tier):
    case = CASES[name]
    q, k, v, rpb = case.arrays("query", "key", "value", "rpb")
    qk, av, na = (getattr(ops, f"na{case.rank}d{x}") for x in ("_qk", "_av", ""))
    with ops.use_backend(tier):
        logits = qk(q, k, case.kernel_size, **options(case), rpb=rpb)
        out = av(mx.softmax(logits, axis=-1), v, case.kernel_size, **options(case))
        assert mx.allclose(out, na(q, k, v, case.kernel_size, **options(case), rpb=rpb), atol=1e-5)


@EACH_TIER
def test_softmax_between_the_halves_has_gradients(tier):
    """Masked slots hold -inf: the gradient through a softmax must not turn it into NaN."""
    x = mx.random.normal((1, 9, 2, 4), key=mx.random.key(0))

    def halves(q, k, v):
        weights = mx.softmax(ops.na1d_qk(q, k, 4, is_causal=True), axis=-1)
        return (ops.na1d_av(weights, v, 4, is_causal=True) ** 2).sum()

    def whole(q, k, v):
        return (ops.na1d(q, k, v, 4, is_causal=True) ** 2).sum()

    with ops.use_backend(tier):
        for a, b in zip(
            mx.grad(halves, argnums=(0, 1, 2))(x, x, x),
            mx.grad(whole, argnums=(0, 1, 2))(x, x, x),
            strict=True,
        ):
            assert mx.allclose(a, b, atol=1e-4)


@EACH_TIER
def test_slots_are_in_the_order_of_keys_and_masked_ones_last(tier):
    ones, place = mx.ones((1, 6, 1, 1)), mx.arange(6.0).reshape(1, 6, 1, 1)
    with ops.use_backend(tier):
        logits = np.array(ops.na1d_qk(ones, place, 3, is_causal=True, scale=1.0))[0, :, 0]
    inf = np.inf
    assert logits.tolist() == [
        [0, -inf, -inf],
        [0, 1, -inf],
        *([i, i + 1, i + 2] for i in range(4)),
    ]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_qk_rpb_does_not_scale(rank):
    x = mx.random.normal((1, *[6] * rank, 2, 4))
    rpb = mx.random.normal((2, *[5] * rank))
    qk, qk_rpb, av, av_fused = (
        getattr(ops, f"na{rank}d{x}") for x in ("_qk", "_qk_rpb", "_av", "_av_fused")
    )
    logits = qk_rpb(x, x, rpb, 3)
    assert mx.allclose(logits, qk(x, x, 3, scale=1.0, rpb=rpb), atol=1e-5)
    assert mx.allclose(qk_rpb(x, x, rpb, 3, 2, scale=0.5), qk(x, x, 3, 2, scale=0.5, rpb=rpb))
    assert mx.array_equal(av_fused(logits, x, 3, 1), av(logits, x, 3))


@EACH_TRACED_TIER
def test_compiled_and_mapped(tier):
    x = mx.random.normal((3, 2, 8, 1, 4))
    with ops.use_backend(tier):
        step = lambda q, k, v: ops.na1d_av(ops.na1d_qk(q, k, 3), v, 3)  # noqa: E731
        one_by_one = mx.stack([step(a, a, a) for a in x])
        assert mx.allclose(mx.vmap(step)(x, x, x), one_by_one, atol=1e-5)
        compiled = mx.compile(step)
        assert mx.allclose(compiled(x[0], x[0], x[0]), one_by_one[0], atol=1e-5)
        assert compiled(x[0, :, :5], x[0, :, :5], x[0, :, :5]).shape == (2, 5, 1, 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: ops.na2d_qk(x, x[:, :4], 3), ValueError, r"\[na2d_qk\] 'query' and 'key'"),
        (lambda x: ops.na2d_qk(x, x, 9), ValueError, r"smallest input that works is \(9, 9\)"),
        (lambda x: ops.na2d_qk(x, x, 3, rpb=mx.zeros((2, 3, 3))), ValueError, "'rpb' must have"),
        (lambda x: ops.na2d_qk(x[0], x[0], 3), ValueError, "5 axes"),
        (lambda x: ops.na2d_av(x, x, 3), ValueError, r"'attn' must have shape \(1, 8, 8, 2, 9\)"),
        (lambda x: ops.na2d_av(x.astype(mx.float16), x, 3), TypeError, "one dtype"),
        (lambda x: ops.na2d_av(mx.zeros((1, 8, 8, 3, 9)), x, 3), ValueError, "multiple"),
        (lambda x: ops.na2d_av(mx.zeros((1, 8, 9)), x, 3), ValueError, "'attn' must have 5 axes"),
        (lambda x: ops.na2d_qk(x, x, True), TypeError, "integer"),
        (
            lambda x: ops.na2d_av(mx.zeros((1, 8, 8, 2, 9)), x[..., :0], 3),
            ValueError,
            "not be empty",
        ),
        (
            lambda x: ops.na2d_av(mx.zeros((1, 8, 8, 0, 9)), x[..., :0, :], 3),
            ValueError,
            "not be em",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(mx.zeros((1, 8, 8, 2, 4)))

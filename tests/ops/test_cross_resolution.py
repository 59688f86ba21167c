"""Queries on a finer map than the keys: the same as keys upsampled and dilated, on every tier."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops.cross_resolution import fold, unfold
from tests.ops.cases import float64, tiers
from tests.reference import Reference

# spatial of the keys, queries per cell, kernel size, and what else the operator is given
CASES = {
    "1-D": ((9,), (4,), (3,), {}),
    "2-D, other factors on each axis": ((5, 6), (2, 3), (3, 4), {}),
    "2-D, one axis as it is": ((6, 5), (1, 4), (5, 3), {"is_causal": (True, False)}),
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
    ref = Reference(
        query.shape[1:-2], kernel, times, (1,) * len(times), steps, flags, query.shape[-1] ** -0.5
    )
    key, value = (upsampled(x, times) for x in (key, value))
    out, lse = ref.forward(query, key, value, rpb)
    d_q, d_k, d_v, d_b = ref.backward(query, key, value, rpb, d_out, np.zeros_like(lse))
    return out, lse, d_q, summed(d_k, times), summed(d_v, times), d_b


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("name", CASES)
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
def test_folding_is_undone(times):
    spatial = (4, 2, 3)[: len(times)]
    fine = [n * r for n, r in zip(spatial, times, strict=True)]
    x = mx.arange(int(np.prod(fine)) * 2 * 5).reshape(1, *fine, 2, 5)
    folded = fold(x, times)
    assert folded.shape == (1, *spatial, 2 * int(np.prod(times)), 5)
    assert mx.array_equal(unfold(folded, times), x)
    assert mx.array_equal(unfold(folded[..., 0], times), x[..., 0])


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

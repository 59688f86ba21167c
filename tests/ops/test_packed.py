"""Attention to the parts of one array, on every tier that is here."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.problem import attention_problem
from tests.reference import Reference

CASES = {
    "1-D": (1, (23,), 4, 4, dict(kernel_size=5)),
    "2-D": (2, (9, 11), 2, 2, dict(kernel_size=(3, 5), dilation=(2, 1))),
    "2-D, grouped": (2, (9, 8), 6, 2, dict(kernel_size=3, is_causal=(True, False))),
    "2-D, one for all": (2, (8, 8), 4, 1, dict(kernel_size=4, window_stride=2)),
    "2-D, stride": (2, (9, 8), 4, 2, dict(kernel_size=3, stride=(2, 3))),
    "2-D, all of it": (2, (5, 4), 2, 2, dict(kernel_size=-1)),
    "3-D": (3, (4, 5, 6), 2, 2, dict(kernel_size=3, is_causal=(True, False, False))),
}
TIERS = ["pure", "nanobind"]


@pytest.fixture(params=TIERS)
def tier(request):
    if request.param == "nanobind" and not ops.has_nanobind():
        pytest.skip("the compiled tier is not built")
    with ops.use_backend(request.param):
        yield request.param


def given(name: str, dtype: mx.Dtype = mx.float32, dim: int = 8):
    rank, size, heads, kv_heads, options = CASES[name]
    hood = Neighborhood.of(rank, **options)
    qkv = mx.random.normal((2, *size, heads + 2 * kv_heads, dim), key=mx.random.key(3))
    rpb = mx.random.normal((heads, *hood.on(size).bias_shape), key=mx.random.key(4))
    return hood, qkv.astype(dtype), heads, rpb


def parts(qkv: mx.array, heads: int) -> list[mx.array]:
    kv_heads = (qkv.shape[-2] - heads) // 2
    return mx.split(qkv, [heads, heads + kv_heads], axis=-2)


def gradients(function, *arrays):
    """Of a sum in which every result has a weight of its own."""

    def total(*arrays):
        out, lse = function(*arrays)
        weight = mx.random.normal(out.shape, key=mx.random.key(5))
        return (out * weight).sum() + (lse * weight[..., 0]).sum()

    return mx.grad(total, argnums=list(range(len(arrays))))(*arrays)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_bits_of_three_arrays(tier, name, dtype):
    hood, qkv, heads, rpb = given(name, dtype)

    def packed(qkv, rpb):
        return ops.attend_packed(hood, qkv, heads, rpb=rpb)

    def apart(qkv, rpb):
        return ops.attend(hood, *parts(qkv, heads), rpb=rpb)

    for x, y in zip(packed(qkv, rpb), apart(qkv, rpb), strict=True):
        assert mx.array_equal(x, y)
    for x, y in zip(gradients(packed, qkv, rpb), gradients(apart, qkv, rpb), strict=True):
        assert x.shape == y.shape
        assert mx.array_equal(x, y)


@pytest.mark.parametrize("name", CASES)
def test_reference(tier, name):
    hood, qkv, heads, rpb = given(name)
    problem = attention_problem("na2d", hood, *parts(qkv, heads), None, rpb)
    of = problem.neighborhood
    ref = Reference(
        problem.spatial, of.kernel_size, of.dilation, of.stride, of.window_stride, of.is_causal,
        problem.scale, None,
    )  # fmt: skip
    stride = (slice(None), *(slice(None, None, s) for s in hood.stride))
    query, key, value, bias = (np.array(x, np.float64) for x in (*parts(qkv, heads), rpb))
    exact = [query[stride], key, value, bias]
    out, lse = ops.attend_packed(hood, qkv, heads, rpb=rpb)
    wanted_out, wanted_lse = ref.forward(*exact)
    assert np.abs(np.array(out) - wanted_out).max() < 1e-5
    assert np.abs(np.array(lse) - wanted_lse).max() < 1e-5
    weight = np.array(mx.random.normal(out.shape, key=mx.random.key(5)), np.float64)
    d_query, d_key, d_value, d_rpb = ref.backward(*exact, weight, weight[..., 0])
    all_queries = np.zeros_like(query)
    all_queries[stride] = d_query
    got = gradients(lambda x, b: ops.attend_packed(hood, x, heads, rpb=b), qkv, rpb)
    for x, y in zip(got, (np.concatenate([all_queries, d_key, d_value], -2), d_rpb), strict=True):
        assert np.abs(np.array(x) - y).max() < 1e-5 * max(1, np.abs(y).max())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_operators(tier, rank):
    function = getattr(ops, f"na{rank}d_qkvpacked")
    plain = getattr(ops, f"na{rank}d")
    qkv = mx.random.normal((1, *(7,) * rank, 3, 2, 8))
    query, key, value = (qkv[..., i, :, :] for i in range(3))
    options = dict(kernel_size=3, dilation=2, is_causal=True, scale=0.3, return_lse=True)
    got, wanted = function(qkv, **options), plain(query, key, value, **options)
    assert all(mx.array_equal(x, y) for x, y in zip(got, wanted, strict=True))
    assert mx.array_equal(function(qkv, 3, 2, 1, True), plain(query, key, value, 3, 2, 1, True))
    rows = qkv.flatten(-3, -2)
    assert mx.array_equal(function(rows, **options, num_heads=2)[0], got[0])


def test_ragged_batches(tier):
    hood, qkv, heads, rpb = given("2-D, grouped")
    sizes = mx.array([[9, 8], [5, 3]])
    got = ops.attend_packed(hood, qkv, heads, rpb=rpb, sizes=sizes)
    wanted = ops.attend_varlen(hood, *parts(qkv, heads), sizes, rpb=rpb)
    assert all(mx.array_equal(x, y) for x, y in zip(got, wanted, strict=True))
    x = gradients(lambda x: ops.attend_packed(hood, x, heads, rpb=rpb, sizes=sizes), qkv)
    y = gradients(lambda x: ops.attend_varlen(hood, *parts(x, heads), sizes, rpb=rpb), qkv)
    assert mx.array_equal(x[0], y[0])


def test_transformations(tier):
    hood, qkv, heads, rpb = given("2-D, grouped")

    def total(qkv, rpb):
        return ops.attend_packed(hood, qkv, heads, rpb=rpb)[0].square().sum()

    alone = gradients(lambda x: ops.attend_packed(hood, x, heads), qkv)[0]
    apart = gradients(lambda x: ops.attend(hood, *parts(x, heads)), qkv)[0]
    assert mx.array_equal(alone, apart)
    each = mx.vmap(lambda x: ops.attend_packed(hood, x, heads)[0])(qkv[None])
    assert mx.array_equal(each[0], ops.attend_packed(hood, qkv, heads)[0])
    both = mx.grad(total, argnums=(0, 1))
    wanted = both(qkv, rpb)
    for function in (mx.compile(both), mx.grad(mx.checkpoint(total), argnums=(0, 1))):
        for x, y in zip(function(qkv, rpb), wanted, strict=True):
            assert mx.allclose(x, y, 1e-5, 1e-6)
    many = mx.stack([qkv, qkv[:, ::-1], 2 * qkv], axis=1)
    mapped = mx.vmap(both, in_axes=(1, None))(many, rpb)
    for i in range(3):
        for x, y in zip(mapped, both(many[:, i], rpb), strict=True):
            assert mx.allclose(x[i], y, 1e-4, 1e-5)
    with pytest.raises(NotImplementedError):
        mx.jvp(lambda x: ops.attend_packed(hood, x, heads)[0], [qkv], [qkv])


def test_no_samples(tier):
    x = mx.zeros((0, 8, 8, 3, 2, 8))
    assert ops.na2d_qkvpacked(x, 3).shape == (0, 8, 8, 2, 8)
    assert mx.grad(lambda x: ops.na2d_qkvpacked(x, 3).sum())(x).shape == x.shape


def test_what_is_refused():
    x = mx.zeros((1, 8, 8, 3, 2, 8))
    rows = x.flatten(-3, -2)
    for wrong, options, why in (
        (rows, {}, r"\[na2d_qkvpacked\] 'qkv' must be \[batch, height, width, 3, heads, head_d"),
        (x, {"num_heads": 2}, "'qkv' must be"),
        (x[:, :, :, :2], {}, "'qkv' must be"),
        (rows, {"num_heads": 3}, "two for each of the keys'"),
        (rows, {"num_heads": 6}, "two for each"),
        (mx.zeros((1, 8, 8, 9, 8)), {"num_heads": 5}, "must be a multiple"),
    ):
        with pytest.raises(ValueError, match=why):
            ops.na2d_qkvpacked(wrong, 3, **options)
    with pytest.raises(TypeError, match="'num_heads' must be an integer"):
        ops.na2d_qkvpacked(rows, 3, num_heads=2.0)
    with pytest.raises(TypeError, match=r"'qkv' must be an mx\.array"):
        ops.na2d_qkvpacked([1], 3)

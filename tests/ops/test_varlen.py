"""`na*d_varlen`: what is particular to them; numbers are in test_attention and test_sweep."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from tests.ops.cases import EACH_TIER

SIZES = {1: [(12,), (7,)], 2: [(9, 12), (6, 7)], 3: [(6, 7, 8), (6, 6, 7)]}
OPTIONS = [
    {},
    {"is_causal": True},
    {"stride": 2},
    {"window_stride": 2},
    {"dilation": 2},
    {"stride": 2, "is_causal": True, "window_stride": 3},
]


@EACH_TIER
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_sample_is_attended_alone(rank, options, tier):
    sizes = SIZES[rank]
    padded = tuple(np.max(sizes, axis=0))
    q = mx.random.normal((2, *padded, 4, 8))
    k, v = mx.random.normal((2, 2, *padded, 2, 8))
    rpb = mx.random.normal((4, *[5] * rank))
    varlen, na = getattr(ops, f"na{rank}d_varlen"), getattr(ops, f"na{rank}d")
    with ops.use_backend(tier):
        out, lse = varlen(q, k, v, sizes, 3, rpb=rpb, return_lse=True, **options)
        for b, size in enumerate(sizes):
            corner = (slice(b, b + 1), *(slice(n) for n in size))
            alone, alone_lse = na(
                q[corner], k[corner], v[corner], 3, rpb=rpb, return_lse=True, **options
            )
            stride = options.get("stride", 1)
            inside = (slice(b, b + 1), *(slice(-(-n // stride)) for n in size))
            assert mx.allclose(out[inside], alone, atol=1e-5)
            assert mx.allclose(lse[inside], alone_lse, atol=1e-5)
            outside = np.ones(out.shape[1:-2], bool)
            outside[inside[1:]] = False
            assert not np.array(out)[b][outside].any()
            assert np.isneginf(np.array(lse)[b][outside]).all()


def test_sizes_may_be_lists_numpy_or_computed():
    x = mx.random.normal((2, 9, 1, 4))
    want = ops.na1d_varlen(x, x, x, [9, 5], 3)
    for sizes in (mx.array([9, 5]), np.array([9, 5]), ((9,), (5,)), mx.array([[9], [5]])):
        assert mx.array_equal(ops.na1d_varlen(x, x, x, sizes, 3), want)
    assert mx.array_equal(ops.na1d_varlen(x, x, x, mx.array([99, 5]), 3), want)


@EACH_TIER
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batch_of_no_samples(rank, tier):
    x, varlen = mx.zeros((0, *[8] * rank, 2, 4)), getattr(ops, f"na{rank}d_varlen")
    with ops.use_backend(tier):
        for sizes in ([], np.zeros((0, rank), np.int64), mx.zeros((0, rank), mx.int32)):
            assert varlen(x, x, x, sizes, 3).shape == x.shape


@EACH_TIER
def test_samples_smaller_than_a_window_see_all_of_themselves(tier):
    x = mx.random.normal((1, 9, 1, 4))
    with ops.use_backend(tier):
        out = ops.na1d_varlen(x, x, x, [2], 5)
    small = x[:, :2]
    assert mx.allclose(out[:, :2], ops.attention(small, small, small), atol=1e-5)


@pytest.mark.parametrize(
    "sizes, error, message",
    [
        ([9, 10], ValueError, "must lie between 1 and the padded size"),
        ([9, 0], ValueError, "must lie between 1 and the padded size"),
        ([9, 5, 3], ValueError, r"must have shape \[2\]"),
        (mx.array([9]), ValueError, r"must have shape \[2\]"),
        ([[9], [5, 3]], ValueError, r"must have shape \[2\]"),
        (9, ValueError, r"must have shape \[2\] but got \[\]"),
        ([9.0, 5.0], TypeError, "must be integers"),
        (mx.array([9.0, 5.0]), TypeError, "must be integers"),
    ],
)
def test_errors(sizes, error, message):
    x = mx.zeros((2, 9, 1, 4))
    with pytest.raises(error, match=r"\[na1d_varlen\] 'seq_lens' " + message):
        ops.na1d_varlen(x, x, x, sizes, 3)

"""The closed form of a window, against its definition."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.layers import NeighborhoodAttention2D
from natten_zoo.ops import Neighborhood, na2d
from tests.reference import axis_keys


def windows():
    for kernel, dilation, causal in itertools.product(range(1, 9), range(1, 5), (False, True)):
        for window_stride in range(1, kernel + 1):
            yield kernel, dilation, window_stride, causal


@pytest.mark.parametrize("xp", [np, mx], ids=["numpy", "mlx"])
def test_window_is_the_definition(xp):
    for kernel, dilation, window_stride, causal in windows():
        hood = Neighborhood.of(
            1, kernel, dilation=dilation, window_stride=window_stride, is_causal=causal
        )
        smallest = kernel * dilation
        # Shorter than the kernel, too: samples of a padded batch may be.
        for length in (1, smallest // 2 + 1, smallest, smallest + 1, smallest + 5):
            first, count = hood.window(0, xp.arange(length), length, xp)
            count = xp.broadcast_to(count, first.shape)
            for i, (start, n) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
                keys = axis_keys(i, length, kernel, dilation, window_stride, causal)
                assert [start + t * dilation for t in range(n)] == keys


def test_mask_and_windows_follow_the_stride():
    hood = Neighborhood.of(1, 4, dilation=2, stride=3)
    mask = hood.mask(0, 13)
    assert mask.shape == (5, 13)
    for row, i in zip(mask, range(0, 13, 3), strict=True):
        assert np.flatnonzero(row).tolist() == axis_keys(i, 13, 4, 2, 1, False)


def test_window_takes_an_array_of_lengths():
    hood = Neighborhood.of(1, 5)
    first, count = hood.window(0, mx.arange(6)[None], mx.array([[6], [3]]), mx)
    assert first.tolist()[0] == [0, 0, 0, 1, 1, 1]
    assert mx.broadcast_to(count, first.shape).tolist() == [[5] * 6, [3] * 6]


def test_properties():
    hood = Neighborhood.of(2, (3, 4), dilation=(1, 2), stride=(2, 3))
    assert (hood.rank, hood.volume) == (2, 12)
    assert hood.minimum_size == (3, 8) and hood.bias_shape == (5, 7)
    assert hood.output_size((9, 10)) == (5, 4)
    assert not hood.covers((3, 4))
    assert Neighborhood.of(2, (3, 4)).covers((3, 4))
    assert not Neighborhood.of(2, (3, 4), is_causal=(False, True)).covers((3, 4))


@pytest.mark.parametrize("value", [np.int64(3), (np.int32(3), 3), [3, 3], np.array([3, 3])])
def test_numpy_integers_are_integers(value):
    assert Neighborhood.of(2, value).kernel_size == (3, 3)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"kernel_size": 0}, ValueError, "'kernel_size' must be at least 1"),
        ({"kernel_size": True}, TypeError, "'kernel_size' must be an integer"),
        ({"kernel_size": 3.0}, TypeError, "'kernel_size' must be"),
        ({"kernel_size": "33"}, TypeError, "'kernel_size' must be"),
        ({"kernel_size": np.array(3)}, TypeError, "'kernel_size' must be one value or one per"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "'kernel_size' must have 2 entries"),
        ({"kernel_size": 3, "dilation": -1}, ValueError, "'dilation' must be at least 1"),
        ({"kernel_size": 3, "stride": 4}, ValueError, "'stride' must not be larger"),
        ({"kernel_size": 3, "window_stride": (1, 4)}, ValueError, "'window_stride' must not"),
        ({"kernel_size": 3, "is_causal": 1}, TypeError, "'is_causal' must be"),
        ({"kernel_size": 3, "is_causal": (True,)}, ValueError, "'is_causal' must have 2"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=r"\[na2d\] " + message):
        Neighborhood.of(2, **arguments, op="na2d")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: na2d(x, x, x, 5, dilation=2), ValueError, r"works is \(10, 10\)"),
        (lambda x: na2d(x, x, x[:, :4], 3), ValueError, "same batch and spatial axes"),
        (lambda x: na2d(x, x, x.astype(mx.float16), 3), TypeError, "one dtype"),
        (lambda x: na2d(x, x, x.astype(mx.int32), 3), TypeError, "float32, float16 or bfloat16"),
        (lambda x: na2d(np.zeros(x.shape), x, x, 3), TypeError, "must be an mx.array"),
        (lambda x: na2d(x[..., :2], x, x, 3), ValueError, "same head_dim"),
        (lambda x: na2d(x[..., :1, :], x, x, 3), ValueError, "multiple"),
        (lambda x: na2d(x, x, x, 3, rpb=mx.zeros((2, 5, 3))), ValueError, "'rpb' must have shape"),
        (lambda x: na2d(x, x, x, 3, additional_keys=x[:, 0]), ValueError, "given together"),
        (lambda x: na2d(x[0], x[0], x[0], 3), ValueError, "must have 5 axes"),
        (lambda x: na2d(x, x, x, 3, scale="1"), TypeError, "'scale' must be a number"),
        (lambda x: na2d(x, x, x, 3, scale=mx.array(1.0)), TypeError, "'scale' must be a number"),
        (lambda x: na2d(x, x, x, 3, scale=True), TypeError, "'scale' must be a number"),
        (lambda x: na2d(x, x, x, 3, scale=float("nan")), ValueError, "'scale' must be finite"),
        (lambda x: na2d(x[:, :0], x[:, :0], x[:, :0], 3), ValueError, "must not be empty"),
    ],
)
def test_errors_of_arrays(call, error, message):
    with pytest.raises(error, match=r"\[na2d\].*" + message):
        call(mx.zeros((1, 8, 8, 2, 4)))


def test_the_support_matrix_has_every_operator():
    operators = {n for n in ops.__all__ if n.startswith("na") and n[2] in "123"}
    matrix = ops.get_support_matrix()
    assert set(matrix) == {"fast_metal", "cuda", "nanobind", "pure"}
    assert all(set(answers) == operators for answers in matrix.values())
    assert set(matrix["pure"].values()) == {"yes"}


def test_a_whole_axis():
    hood = Neighborhood.of(3, (-1, 3, -1), window_stride=(4, 1, 2))
    assert hood.minimum_size == (1, 3, 1) and hood.fits((1, 3, 1))
    assert hood.on((5, 9, 4)) == Neighborhood.of(3, (5, 3, 4), window_stride=(4, 1, 2))
    assert Neighborhood.of(1, 3).on((9,)) is Neighborhood.of(1, 3)
    with pytest.raises(ValueError, match=r"\[na3d\] 'window_stride' must not be larger"):
        hood.on((3, 9, 4), "na3d")
    with pytest.raises(ValueError, match=r"'dilation' must be 1 on axes that a window spans"):
        Neighborhood.of(2, (-1, 3), dilation=2)
    for unknown in (lambda: hood.volume, lambda: hood.bias_shape):
        with pytest.raises(ValueError, match=r"must be known here but got \(-1, 3, -1\)"):
            unknown()


def test_a_whole_axis_in_every_operator():
    x = mx.random.normal((2, 5, 6, 2, 8))
    bias = mx.random.normal((2, 9, 5))
    whole, known = (-1, 3), (5, 3)
    assert mx.array_equal(na2d(x, x, x, whole, rpb=bias), na2d(x, x, x, known, rpb=bias))
    weights = ops.na2d_qk(x, x, whole, rpb=bias)
    assert mx.array_equal(weights, ops.na2d_qk(x, x, known, rpb=bias))
    assert mx.array_equal(ops.na2d_av(weights, x, whole), ops.na2d_av(weights, x, known))
    sizes = [(5, 6), (2, 4)]
    varlen = [ops.na2d_varlen(x, x, x, sizes, kernel) for kernel in (whole, known)]
    assert mx.array_equal(*varlen)
    layer = NeighborhoodAttention2D(16, 2, whole)
    tokens = x.flatten(-2)
    assert layer(tokens).shape == tokens.shape
    assert layer.macs(layer(tokens), tokens) == 2 * tokens.size * 15


# Map, window, the rest: of Cosmos-Predict2 with NATTEN (44 x 80 latents; the first axis is time),
# and of the models in Generalized Neighborhood Attention, https://arxiv.org/abs/2504.16922.
COSMOS, FLUX, HUNYUAN = (2, 44, 80), (256, 256), (30, 48, 80)
PUBLISHED = {
    "Cosmos, dilation": (COSMOS, (-1, 4, 16), {"dilation": (1, 11, 5)}),
    "Cosmos, 12 x 24": (COSMOS, (-1, 12, 24), {"window_stride": (1, 4, 8)}),
    "Cosmos, 20 x 40": (COSMOS, (-1, 20, 40), {"window_stride": (1, 4, 8)}),
    "FLUX": (FLUX, (80, 80), {}),
    "FLUX, stride": (FLUX, (80, 80), {"window_stride": (16, 16)}),
    "Hunyuan": (HUNYUAN, (18, 24, 24), {}),
    "Hunyuan, stride": (HUNYUAN, (18, 24, 24), {"window_stride": (16, 8, 8)}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if "Cosmos" in n else pytest.mark.slow) for n in PUBLISHED]
)
def test_published_windows_of_generalized_neighborhood_attention(name):
    spatial, kernel, options = PUBLISHED[name]
    tokens, rank = math.prod(spatial), len(spatial)
    query, key, value = (mx.random.normal((1, *spatial, 1, 8)) for _ in range(3))
    out = np.array(getattr(ops, f"na{rank}d")(query, key, value, kernel, **options)).reshape(-1, 8)
    steps, d = (options.get(key, (1,) * rank) for key in ("window_stride", "dilation"))
    q, k, v = (np.array(x, np.float64).reshape(-1, 8) for x in (query, key, value))
    kernels = [n if size == -1 else size for size, n in zip(kernel, spatial, strict=True)]
    some = np.random.default_rng(0).integers(tokens, size=6)
    for token in (0, spatial[-1] - 1, tokens - 1, *some):  # some queries, each by the definition
        place = np.unravel_index(token, spatial)
        seen = [
            axis_keys(*each, False) for each in zip(place, spatial, kernels, d, steps, strict=True)
        ]
        keys = np.ravel_multi_index(np.meshgrid(*seen, indexing="ij"), spatial).ravel()
        weights = np.exp(k[keys] @ q[token] * 8**-0.5)
        assert np.allclose(out[token], weights @ v[keys] / weights.sum(), atol=1e-5)

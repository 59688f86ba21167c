"""The closed form of a window, against its definition."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
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

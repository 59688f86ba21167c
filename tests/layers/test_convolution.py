"""Convolutions with strides against MLX's, in values and gradients."""

import ast
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import natten_zoo
from natten_zoo import ops
from natten_zoo.layers import convolution
from natten_zoo.layers.convolution import Conv1d, Conv2d, Conv3d

# Spatial size, kernel, stride, padding: strides that divide the kernel, that don't, that are
# larger; inputs whose last rows no output sees; padding that outputs see alone.
CASES = {
    "nat": ((8, 8), (3, 3), (2, 2), (1, 1)),
    "odd": ((9, 7), (3, 3), (2, 2), (1, 1)),
    "patches": ((8, 12), (4, 4), (4, 4), (0, 0)),
    "unseen": ((11, 10), (3, 2), (4, 3), (0, 1)),
    "one axis": ((6, 9), (3, 5), (1, 2), (1, 2)),
    "padded": ((5, 6), (3, 3), (2, 3), (3, 4)),
    "one tap": ((7, 7), (1, 1), (2, 3), (0, 0)),
    "1-D": ((21,), (9,), (4,), (4,)),
    "3-D": ((3, 8, 7), (2, 3, 3), (1, 2, 2), (0, 1, 1)),
    "3-D in time": ((5, 6, 6), (3, 3, 3), (2, 2, 2), (0, 1, 1)),
}


@pytest.fixture(autouse=True)
def on_cpu():
    with mx.stream(mx.cpu):
        yield


def problem(case, dtype=mx.float32):
    spatial, kernel, stride, padding = CASES[case]
    x = mx.random.normal((2, *spatial, 3)).astype(dtype)
    weight = mx.random.normal((5, *kernel, 3)).astype(dtype)
    return x, weight, stride, padding


def brute_force(x, weight, d_out, stride, padding):
    """Output and gradients by the definition, in float64."""
    x, weight, d_out = (np.array(a.astype(mx.float32), np.float64) for a in (x, weight, d_out))
    padded = np.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    d_padded, d_weight, out = np.zeros_like(padded), np.zeros_like(weight), np.zeros_like(d_out)
    for place in np.ndindex(d_out.shape[1:-1]):
        starts = [s * i for s, i in zip(stride, place, strict=True)]
        ends = [b + k for b, k in zip(starts, weight.shape[1:-1], strict=True)]
        seen = (slice(None), *map(slice, starts, ends))
        at = (slice(None), *place)
        out[at] = np.tensordot(padded[seen], weight, (range(1, x.ndim), range(1, x.ndim)))
        d_padded[seen] += np.tensordot(d_out[at], weight, 1)
        d_weight += np.tensordot(d_out[at], padded[seen], (0, 0))
    kept = tuple(slice(p, p + n) for p, n in zip(padding, x.shape[1:-1], strict=True))
    return out, d_padded[(slice(None), *kept)], d_weight


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_the_definition(case, dtype):
    x, weight, stride, padding = problem(case, dtype)
    out = convolution.convolve(x, weight, stride, padding)
    d_out = mx.random.normal(out.shape).astype(dtype)
    _, grads = mx.vjp(lambda *a: convolution.convolve(*a, stride, padding), [x, weight], [d_out])
    ulp = {mx.float32: 2.0**-20, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}[dtype]
    for ours, wanted in zip(
        (out, *grads), brute_force(x, weight, d_out, stride, padding), strict=True
    ):
        assert ours.dtype == dtype
        assert ours.shape == wanted.shape
        assert np.abs(np.array(ours.astype(mx.float32)) - wanted).max() <= ulp * max(
            1, np.abs(wanted).max()
        )


@pytest.mark.parametrize(
    ("ours", "mlx", "size"),
    [
        (Conv1d, nn.Conv1d, (2, 11, 4)),
        (Conv2d, nn.Conv2d, (2, 11, 9, 4)),
        (Conv3d, nn.Conv3d, (2, 5, 9, 8, 4)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_layers_are_mlx_s(ours, mlx, size, bias):
    layer, peer = (kind(4, 6, 3, stride=2, padding=1, bias=bias) for kind in (ours, mlx))
    peer.update(layer.parameters())
    x = mx.random.normal(size)
    assert mx.array_equal(layer(x), peer(x))
    grads = [nn.value_and_grad(f, lambda f=f: mx.square(f(x)).sum())()[1] for f in (layer, peer)]
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        assert mx.allclose(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"dilation": 2}, {"groups": 2}], ids=str)
def test_what_is_mlx_s_own_with_strides(options):
    layer, peer = (k(4, 6, 3, stride=2, padding=2, **options) for k in (Conv2d, nn.Conv2d))
    peer.update(layer.parameters())
    x = mx.random.normal((2, 11, 9, 4))
    assert mx.array_equal(layer(x), peer(x))


def test_a_batch_of_none():
    weight = mx.random.normal((6, 3, 3, 4))
    d_x, d_weight = mx.grad(lambda *a: strided(*a).sum(), argnums=(0, 1))(
        mx.zeros((0, 9, 8, 4)), weight
    )
    assert d_x.shape == (0, 9, 8, 4)
    assert mx.array_equal(d_weight, mx.zeros_like(weight))


def strided(x, weight):
    return convolution.convolve(x, weight, (2, 2), (1, 1))


def mlx_s(x, weight):
    return mx.conv_general(x, weight, (2, 2), (1, 1))


def test_transformations():
    x, weight, *_ = problem("odd")
    more = mx.stack([x, 2 * x], axis=1)
    for transformed in (
        lambda f: mx.vmap(f, in_axes=(1, None))(more, weight),
        lambda f: mx.vmap(mx.grad(lambda v: mx.square(f(v, weight)).sum()), in_axes=1)(more),
        lambda f: mx.compile(mx.grad(lambda v: mx.square(f(v, weight)).sum()))(x),
        lambda f: mx.grad(lambda v: mx.checkpoint(f)(v, weight).sum())(x),
        lambda f: mx.grad(  # a gradient of a gradient
            lambda w: mx.square(mx.grad(lambda v: mx.sin(f(v, w)).sum())(x)).sum()
        )(weight),
        lambda f: mx.grad(lambda v: f(v.astype(mx.float16), weight).sum())(x),  # mixed dtypes
    ):
        ours, wanted = transformed(strided), transformed(mlx_s)
        assert ours.dtype == wanted.dtype
        assert mx.allclose(ours, wanted, rtol=1e-3, atol=1e-3)


def test_is_recorded_as_mlx_s_own_for_export(tmp_path):
    x, weight, *_ = problem("nat")
    with ops.exporting("cpu"):
        mx.export_function(str(tmp_path / "f.mlxfn"), lambda v: strided(v, weight), x)
    (out,) = mx.import_function(str(tmp_path / "f.mlxfn"))(x)
    assert mx.array_equal(out, strided(x, weight))


def test_gradients_are_ours_where_mlx_is_slow(monkeypatch):
    seen = []
    original = convolution.input_gradient

    def noted(*args):
        seen.append(args[3])
        return original(*args)

    monkeypatch.setattr(convolution, "input_gradient", noted)
    for case, (*_, stride, padding) in CASES.items():
        x, weight, *_ = problem(case)
        mx.grad(lambda v, a=(weight, stride, padding): convolution.convolve(v, *a).sum())(x)
    assert seen == [stride for *_, stride, _ in CASES.values()]


def test_no_layer_of_the_library_is_mlx_s_where_that_is_slow():
    found = []
    for path in Path(natten_zoo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                strides = len(node.args) > 3 or any(k.arg == "stride" for k in node.keywords)
                slow = name == "nn.LayerNorm" or (name.startswith("nn.Conv") and strides)
                found += [f"{path.name}:{node.lineno}"] * slow
    assert not found

"""Building ahead: how many kernels a model needs, and that nothing is left for its first call."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, ops
from natten_zoo.layers import NeighborhoodAttention2D
from natten_zoo.ops.gpu.device import platform
from tests.metal_emulator.dry import dry
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

pytestmark = pytest.mark.skipif(platform() == "cuda", reason="plays a Metal device")
X = mx.zeros((1, 10, 10, 2, 8))


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_what_nat_mini_needs(batch, dtype):
    """At most 2 kernels forward, 5 with the gradients, for any size of the image."""
    model = create_model("nat_mini")
    model.set_dtype(dtype)
    images = mx.zeros((batch, 224, 224, 3), dtype)
    with dry() as launches:
        forward = ops.prepare(model, images)
        assert forward.built == len(set(launches)) <= 2
        gradients = ops.prepare(model, images, gradients=True)
        assert forward.built + gradients.built == len(set(launches)) <= 5
        larger = mx.zeros((batch, 256, 320, 3), dtype)
        assert ops.prepare(model, larger, gradients=True).built == 0


def run(function, *arrays):
    """The function and its gradients in all arrays."""
    mx.eval(mx.vjp(lambda *a: [function(*a)], list(arrays), [mx.ones_like(function(*arrays))]))


FUNCTIONS = {
    "2-D": (lambda q, k, v: ops.na2d(q, k, v, (3, 5), dilation=2), [X] * 3),
    "1-D": (lambda q: ops.na1d(q, q, q, 5), [mx.zeros((1, 70, 2, 8))]),
    "logits": (lambda q, k: ops.na2d_qk(q, k, 3), [X] * 2),
    "values": (lambda a, v: ops.na2d_av(a, v, 3), [mx.zeros((1, 10, 10, 2, 9)), X]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_left_for_the_first_call(name):
    function, arrays = FUNCTIONS[name]
    with dry() as launches:
        prepared = ops.prepare(function, *arrays, gradients=True)
        assert prepared.built == len(set(launches)) > 1
        before = set(launches)
        run(function, *arrays)
        assert set(launches) == before
        assert str(ops.prepare(function, *arrays, gradients=True)) == "nothing to build"


def test_arguments_by_name_tuples_and_an_array_that_has_no_gradient():
    lengths = mx.array([[9, 5]])
    with dry() as launches:
        prepared = ops.prepare(
            ops.na2d_varlen, X, X, value=X, spatial_sizes=lengths, kernel_size=(3, 5),
            gradients=True,
        )  # fmt: skip
        assert prepared.built == len(set(launches)) == 3
        with pytest.raises(ValueError, match=r"\[prepare\] 'gradients' must be False"):
            ops.prepare(lambda n: n, lengths, gradients=True)


def test_a_layer_keeps_its_parameters():
    layer = NeighborhoodAttention2D(16, 2, 3)
    layer.freeze(keys=["rpb"])
    before = tree_flatten(layer.parameters())
    with dry():
        assert ops.prepare(layer, mx.zeros((1, 9, 9, 16)), gradients=True).built == 3
    after = tree_flatten(layer.parameters())
    assert all(x is y for (_, x), (_, y) in zip(before, after, strict=True))


def test_what_cannot_be_built_is_said():
    with dry(refused="attention_backward") as launches:
        prepared = ops.prepare(FUNCTIONS["2-D"][0], X, X, X, gradients=True)
        assert prepared.built == len(set(launches)) == 1
        assert "attention_backward_query cannot be built" in prepared.failures[0]
        assert str(prepared).startswith("1 kernel built in 0.")
        assert str(prepared).endswith("Unable to build it")


def test_in_the_emulator(metal):  # noqa: F811
    """Real kernels; on zeros, of which only one token is computed."""
    x = mx.zeros((1, 33, 37, 2, 8))  # no other test has these dtype, rank and head_dim
    hood = ops.Neighborhood.of(2, 3)
    ops.prepare(ops.attend, hood, x, x, x)
    assert ops.prepare(ops.attend, hood, x, x, x).built == 0

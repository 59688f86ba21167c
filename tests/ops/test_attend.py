"""The doors that take a Neighborhood: the operators' results, without validating it again."""

import mlx.core as mx
import pytest

from natten_zoo import layers, ops
from natten_zoo.ops import Neighborhood, functional, known

SPATIAL = {1: (12,), 2: (9, 8), 3: (4, 6, 5)}
OPTIONS = {"dilation": 2, "window_stride": 2, "is_causal": True}


def of_rank(rank: int, suffix: str = ""):
    return getattr(ops, f"na{rank}d{suffix}")


@pytest.fixture(params=[1, 2, 3], ids="{}-D".format)
def rank(request):
    return request.param


@pytest.fixture
def hood(rank):
    return Neighborhood.of(rank, 2, **OPTIONS)


@pytest.fixture
def x(rank):
    mx.random.seed(rank)
    return mx.random.normal((2, *SPATIAL[rank], 2, 8))


def test_attend_is_the_operator(rank, hood, x):
    bias, more = mx.random.normal((2, *hood.bias_shape)), mx.random.normal((2, 3, 2, 8))
    options = dict(rpb=bias, scale=0.5, additional_keys=more, additional_values=more)
    got = ops.attend(hood, x, x, x, **options)
    wanted = of_rank(rank)(x, x, x, 2, **OPTIONS, **options, return_lse=True)
    assert all(map(mx.array_equal, got, wanted))


def test_its_sisters_are_the_operators(rank, hood, x):
    bias = mx.random.normal((2, *hood.bias_shape))
    logits = ops.attend_qk(hood, x, x, scale=0.5, rpb=bias)
    wanted = of_rank(rank, "_qk")(x, x, 2, **OPTIONS, scale=0.5, rpb=bias)
    assert mx.array_equal(logits, wanted)
    weights = mx.softmax(logits, axis=-1)
    wanted = of_rank(rank, "_av")(weights, x, 2, **OPTIONS)
    assert mx.array_equal(ops.attend_av(hood, weights, x), wanted)
    sizes = [SPATIAL[rank], [n - 1 for n in SPATIAL[rank]]]
    sizes = [n for (n,) in sizes] if rank == 1 else sizes
    got = ops.attend_varlen(hood, x, x, x, sizes, rpb=bias)
    wanted = of_rank(rank, "_varlen")(x, x, x, sizes, 2, **OPTIONS, rpb=bias, return_lse=True)
    assert all(map(mx.array_equal, got, wanted))


def test_a_layer_validates_its_neighborhood_once(rank, x, monkeypatch):
    layer = getattr(layers, f"NeighborhoodAttention{rank}D")(16, 2, 2, attn_drop=0.5)
    tokens, lengths = x.flatten(-2), mx.array([SPATIAL[rank]] * 2)

    def call() -> None:
        assert layer.train()(tokens).shape == tokens.shape
        assert layer.eval()(tokens).shape == tokens.shape
        assert layer(tokens, lengths).shape == tokens.shape

    def refuse(*args, **kwargs):
        raise AssertionError("validated again")

    call()  # what tiers support is looked at once for each size
    monkeypatch.setattr(Neighborhood, "of", refuse)
    call()


@pytest.mark.parametrize("door", ["attend", "attend_qk", "attend_av", "attend_varlen"])
def test_only_a_neighborhood_is_taken(door):
    x = mx.zeros((1, 9, 1, 4))
    arrays = {"attend": [x, x, x], "attend_varlen": [x, x, x, [9]]}.get(door, [x, x])
    message = rf"^\[{door}\] 'hood' must be a Neighborhood but got 3\.$"
    with pytest.raises(TypeError, match=message):
        getattr(ops, door)(3, *arrays)


def test_messages_name_the_operator_or_who_asks():
    x, hood = mx.zeros((1, 9, 1, 4)), Neighborhood.of(1, 11)
    with pytest.raises(ValueError, match=r"^\[na1d\] 'kernel_size' \* 'dilation'"):
        ops.attend(hood, x, x, x)
    with pytest.raises(ValueError, match=r"^\[mine\] 'kernel_size' \* 'dilation'"):
        ops.attend_av(hood, mx.zeros((1, 9, 1, 11)), x, op="mine")


def test_the_positional_order_is_that_of_natten_mlx():
    """Where the docs warn: the fifth argument is a stride here, and a dilation there."""
    x = mx.random.normal((1, 16, 16, 1, 8))
    assert mx.array_equal(ops.na2d(x, x, x, 7, 2), ops.na2d(x, x, x, 7, stride=2))
    assert mx.array_equal(ops.na2d_qk(x, x, 7, 2), ops.na2d_qk(x, x, 7, dilation=2))
    sizes, weights = [(16, 16)], mx.softmax(ops.na2d_qk(x, x, 7), axis=-1)
    wanted = ops.na2d_varlen(x, x, x, sizes, 7, dilation=2)
    assert mx.array_equal(ops.na2d_varlen(x, x, x, sizes, 7, 2), wanted)
    assert mx.array_equal(ops.na2d_av(weights, x, 7, 2), ops.na2d_av(weights, x, 7, dilation=2))


def test_a_call_like_another_is_looked_up(monkeypatch):
    """And one that differs in anything but its numbers is not."""
    found, make = [], functional.attention_problem
    monkeypatch.setattr(known, "_known", {})
    monkeypatch.setattr(
        functional, "attention_problem", lambda *a, **k: found.append(1) or make(*a, **k)
    )
    hood, x = Neighborhood.of(1, 3), mx.zeros((1, 9, 2, 8))
    for _ in range(3):
        ops.attend(hood, x, x, x, scale=1)
    assert len(found) == 1
    for other in (
        lambda: ops.attend(hood, x, x, x, scale=2),
        lambda: ops.attend(hood, x, x, x, scale=1, rpb=mx.zeros((2, 5))),
        lambda: ops.attend(hood, *[x.astype(mx.float16)] * 3, scale=1),
        lambda: ops.attend(hood, *[x[:, :8]] * 3, scale=1),
        lambda: ops.attend(Neighborhood.of(1, 3, 2), x, x, x, scale=1),
        lambda: ops.explain(ops.attend, hood, x, x, x, scale=1),
        lambda: ops.attend(hood, x, x, x, scale=1, additional_keys=x, additional_values=x),
    ):
        before = len(found)
        other()
        assert len(found) == before + 1
    with ops.use_backend("pure"):
        ops.attend(hood, x, x, x, scale=1)
    assert len(found) == before + 2
    with pytest.raises(TypeError, match="'scale' must be a number"):
        ops.attend(hood, x, x, x, scale=True)

"""Where MLX's attention to all keys is taken on a GPU, why, and that it computes the same."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from natten_zoo import ops
from natten_zoo.ops import Neighborhood, dense, known
from natten_zoo.ops.gpu import dense_cost
from natten_zoo.ops.gpu.device import machine, platform
from natten_zoo.ops.problem import Problem
from tests.metal_emulator.dry import dry
from tests.ops.cases import TOLERANCE, attention_error, cases

M1, M5 = (replace(machine(None), generation=f"applegpu_g{n}g") for n in (13, 17))
H100 = machine("cuda")
HALF, FLOAT = mx.float16, mx.float32


def problem(spatial, kernel_size, dim, dtype=HALF, batch=1, **options):
    hood = Neighborhood.of(len(spatial), kernel_size, **options)
    return Problem(hood, batch, spatial, 4, 4, dim, dim, dim**-0.5, dtype)


@pytest.mark.parametrize(
    ("device", "one", "is_dense"),
    [
        (M1, problem((14, 14), 13, 128), True),
        (M1, problem((14, 14), 13, 128, window_stride=2), True),
        (M1, problem((14, 14), 13, 128, FLOAT), False),  # a mask is for half precision alone
        (M1, problem((14, 14), 13, 64), False),  # its gradients cost more than is won
        (M5, problem((14, 14), 13, 64), True),  # there its products are four times as fast
        (M1, problem((14, 14), 13, 32), False),  # it has no kernel for that, and writes all logits
        (M1, problem((14, 14), 7, 128), False),
        (M1, problem((14, 14), 13, 128, is_causal=True), False),
        (M1, problem((28, 28), 14, 128, dilation=2), False),
        (M1, problem((16, 16), 16, 128, FLOAT), True),
        (M1, problem((16, 16), 16, 32), False),
        (M1, problem((8, 8), 8, 128), False),  # a small map
        (H100, problem((16, 16), 16, 32), True),
        (H100, problem((16, 16), 16, 32, FLOAT), False),
        (H100, problem((16, 16), 16, 128, FLOAT), True),
        (H100, problem((14, 14), 13, 32), False),
        (H100, problem((256, 256), 80, 128), False),
        (M1, problem((64, 64), 63, 128), True),
        (M1, problem((64, 64), 63, 128, batch=16), False),  # 2 GB of weights
        (M1, problem((80, 80), 79, 128), False),  # 41 MB of mask
    ],
    ids=str,
)
def test_the_choice(device, one, is_dense):
    assert (dense_cost.why_dense(one, device) is not None) == is_dense


def test_keys_that_neighbors_see_together():
    assert dense_cost.keys_seen(problem((14, 14), 13, 8)) == 14 * 14
    assert dense_cost.keys_seen(problem((56, 56), 7, 8)) == 8 * 8
    assert dense_cost.keys_seen(problem((56,), 7, 8, dilation=8)) == 7
    assert dense_cost.keys_seen(problem((4,), 4, 8, is_causal=True)) == 2.5 + 1


def test_why_is_said():
    assert dense.why_not(problem((256, 256), 80, 128)) == "its mask would have 4295 MB"
    assert dense.why_not(problem((14, 14), 13, 128)) is None
    assert dense.why_not(problem((64, 64), 63, 128, batch=16)).startswith("its weights would have")
    assert "float32" in dense.why_not(problem((14, 14), 13, 128, FLOAT))
    biased = replace(problem((14, 14), 13, 128), has_rpb=True)
    assert dense.why_not(biased) == "it does not support 'has_rpb'"


needs_metal = pytest.mark.skipif(platform() == "cuda", reason="plays a Metal device")


@needs_metal
def test_explained_and_not_for_a_forced_tier_or_additional_keys():
    x = mx.zeros((1, 14, 14, 2, 128), HALF)
    more = mx.zeros((1, 3, 2, 128), HALF)
    extra = {"additional_keys": more, "additional_values": more}
    with dry():
        (said,) = ops.explain(ops.na2d, x, x, x, 13)
        assert said.tier == "dense"
        assert said.reasons["fast_metal"].startswith("MLX's attention to all 196 keys should take ")
        assert "with gradients" in str(said)
        assert ops.explain(ops.na2d, x, x, x, 13, **extra)[0].tier == "fast_metal"
        assert ops.explain(ops.na2d, x, x, x, 14, **extra)[0].tier == "dense"
        rpb = mx.zeros((2, 25, 25))
        assert ops.explain(ops.na2d, x, x, x, 13, rpb=rpb)[0].tier == "fast_metal"
        with ops.use_backend("fast_metal"):
            assert ops.explain(ops.na2d, x, x, x, 13)[0].tier == "fast_metal"
            assert ops.explain(ops.na2d, x, x, x, 14)[0].tier == "dense"


@pytest.fixture
def always_dense(monkeypatch):
    """A GPU on which MLX's attention is always cheaper, float32 included, which tells more."""
    masked = replace(dense.MASKED, dtypes=(FLOAT, HALF))
    monkeypatch.setattr(dense, "MASKED", masked)
    monkeypatch.setattr(dense_cost, "why_dense", lambda *_: "asked to")
    monkeypatch.setattr(known, "_known", {})
    with dry():
        yield


@needs_metal
def test_random_windows_against_brute_force(always_dense):
    """Output, LSE and gradients, of everything but a bias, with MLX's attention alone."""
    seen = set()

    @settings(
        max_examples=150,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def check(case):
        case = replace(case, has_rpb=False)
        worst = attention_error(case, "auto")
        assert max(worst.values()) < TOLERANCE, worst
        seen.add(case.hood.covers(case.spatial))

    with ops.use_backend("auto"):
        check()
    assert seen == {False, True}


@needs_metal
def test_nothing_but_mlx_computes_it(always_dense):
    x = mx.random.normal((2, 6, 7, 2, 8))
    (said,) = ops.explain(ops.na2d, x, x, x, (5, 6), stride=2, is_causal=(True, False))
    assert said.tier == "dense" and said.reasons == {"fast_metal": "asked to"}
    empty = mx.zeros((0, 6, 7, 2, 8))
    assert ops.na2d(empty, empty, empty, 5).shape == empty.shape


@needs_metal
def test_mapped_and_compiled(always_dense):
    x = mx.random.normal((3, 2, 9, 2, 8))

    def function(q):
        return ops.na1d(q, q, q, 8, is_causal=True)

    each = mx.stack([function(one) for one in x])
    for variant in (mx.vmap(function), mx.compile(mx.vmap(function))):
        np.testing.assert_allclose(variant(x), each, atol=1e-6)


def test_the_mask_is_who_sees_whom():
    hood = Neighborhood.of(2, (3, 2), stride=(2, 1), is_causal=(False, True))
    mask = np.array(dense.neighborhood_mask(hood, (6, 5)))
    assert mask.shape == (3 * 5, 6 * 5) and mask.dtype == bool
    for query in range(15):
        rows, columns = hood.keys(0, query // 5 * 2, 6), hood.keys(1, query % 5, 5)
        wanted = sorted(int(r) * 5 + int(c) for r in rows for c in columns)
        assert np.flatnonzero(mask[query]).tolist() == wanted

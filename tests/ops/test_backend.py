"""Forcing a tier, and what is said where that cannot be."""

import mlx.core as mx
import pytest

from natten_zoo import ops
from natten_zoo.ops import backend


@pytest.mark.parametrize("kernel_size", [5, 7])
def test_a_forced_tier_that_cannot_run_raises(kernel_size):
    tier = "cuda" if ops.has_metal() else "fast_metal"  # no machine has both
    x = mx.zeros((1, 7, 7, 2, 8))
    with (
        ops.use_backend(tier),
        pytest.raises(RuntimeError, match=rf"\[na2d\] backend '{tier}' cannot run this: "),
    ):
        ops.na2d(x, x, x, kernel_size)  # 7 covers the map, which is then plain attention


def test_a_name_that_is_no_tier_is_refused_where_it_comes_from(monkeypatch):
    with pytest.raises(ValueError, match=r"^\[set_backend\] 'name' must be auto, .* got 'metal'"):
        ops.set_backend("metal")
    monkeypatch.setattr(backend, "_set", None)  # what was set goes before the environment
    monkeypatch.setenv("NATTEN_BACKEND", "metal")
    with pytest.raises(ValueError, match=r"^\[get_backend\] NATTEN_BACKEND must be auto,"):
        ops.get_backend()
    monkeypatch.setenv("NATTEN_BACKEND", "")
    assert ops.get_backend() == "auto"

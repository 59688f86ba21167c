"""Forcing a tier, and what is said where that cannot be."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from natten_zoo import ops
from natten_zoo.ops.backend import NAMES


@pytest.mark.parametrize("kernel_size", [5, 7])
def test_a_forced_tier_that_cannot_run_raises(kernel_size):
    tier = "cuda" if ops.has_metal() else "fast_metal"  # no machine has both
    x = mx.zeros((1, 7, 7, 2, 8))
    with (
        ops.use_backend(tier),
        pytest.raises(RuntimeError, match=rf"\[na2d\] backend '{tier}' cannot run this: "),
    ):
        ops.na2d(x, x, x, kernel_size)  # 7 covers the map, which is then plain attention


def test_a_name_that_is_no_tier_is_refused_where_it_comes_from():
    with pytest.raises(ValueError, match=r"^\[set_backend\] 'name' must be auto, .* got 'metal'"):
        ops.set_backend("metal")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "auto"),
        ("pure", "pure"),
        ("metal", f"[get_backend] NATTEN_BACKEND must be {', '.join(NAMES)} but got 'metal'."),
    ],
)
def test_the_environment_forces_a_tier(asked, said):
    code = "from natten_zoo import ops; print(ops.get_backend())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "NATTEN_BACKEND": asked}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout or done.stderr).strip().endswith(said)

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.layers import DropPath, drop_path_schedule


def test_whole_samples_are_dropped_and_the_rest_scaled():
    mx.random.seed(0)
    out = DropPath(0.25)(mx.ones((4000, 2, 3)))
    samples = np.asarray(out).reshape(4000, -1)
    assert (samples == samples[:, :1]).all()
    assert set(np.unique(samples)) == {0, np.float32(1 / 0.75)}
    assert samples.mean() == pytest.approx(1, abs=0.03)


def test_nothing_happens_in_evaluation_or_at_rate_zero():
    x = mx.random.normal((8, 3))
    assert DropPath(0.0)(x) is x
    assert DropPath(0.9).eval()(x) is x


def test_dtype_is_kept():
    assert DropPath(0.5)(mx.ones((4, 2), mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_is_checked(rate):
    with pytest.raises(ValueError, match=r"\[DropPath\] 'rate' must be in \[0, 1\)"):
        DropPath(rate)


def test_schedule_grows_over_all_levels():
    levels = drop_path_schedule(0.3, (3, 1, 2))
    assert [len(level) for level in levels] == [3, 1, 2]
    np.testing.assert_allclose(np.concatenate(levels), np.linspace(0, 0.3, 6))
    assert drop_path_schedule(0.3, (1,)) == [[0.0]]

"""How like real ones made images are: distances with known answers, and a classifier's word."""

import numpy as np
import pytest

from natten_zoo import load_pretrained
from natten_zoo.tasks.fidelity import frechet_distance, look


def test_the_distance_of_normal_distributions():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    random = np.random.default_rng(0)
    one = random.normal(size=(500, 6)) @ random.normal(size=(6, 6)) + 1
    other = random.normal(size=(400, 6)) @ random.normal(size=(6, 6))
    first, second = (np.cov(part, rowvar=False) for part in (one, other))
    apart = one.mean(0) - other.mean(0)
    expected = apart @ apart + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    flat = np.zeros((10, 3))  # without any spread
    assert frechet_distance(flat, flat + np.array([3.0, 4.0, 0.0])) == pytest.approx(25)


def test_a_classifier_looks():
    model = load_pretrained(None, "nat_pico_fashion")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    seen = look(model, pixels, batch_size=2)
    assert seen.features.shape == (5, 128) and seen.classes.shape == (5,)
    assert seen.agreement(seen.classes) == 1
    model.head.weight = model.head.weight * 0
    assert np.array_equal(look(model, pixels).features.round(3), seen.features.round(3))
    with pytest.raises(ValueError, match=r"'pixels' must be \[count, 28, 28, 1\] but got"):
        look(model, pixels[..., 0])

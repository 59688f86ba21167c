"""Pictures of feature maps before and after upsampling."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.models import NAF, NAFConfig
from natten_zoo.viz.upsampling import before_after, principal_colors


def test_before_after():
    mx.random.seed(0)
    image = np.zeros((72, 90, 3), np.uint8)
    image[:, 41:] = 255  # cells are 10 pixels wide
    features = mx.random.normal((9, 9, 8)) * 0.05
    features[:, 4:, 0] += 3.0
    model = NAF(NAFConfig(embed_dim=32, depth=1)).eval()
    upsampled = model(mx.array(image[None]) / 255, features[None])[0]
    page = np.asarray(before_after(image, features, upsampled))
    assert page.shape == (72, 3 * 90 + 16, 3)
    assert (page[:, :90] == image).all()
    before, after = page[:, 98:188], page[:, 196:]
    # The strongest component, red, tells the two kinds of features apart, one value per cell.
    reds = before[4::8, 5::10, 0].astype(int)
    assert abs(reds[:, :4].mean() - reds[:, 4:].mean()) > 150
    assert (before[:8, :10] == before[0, 0]).all()
    step = np.abs(np.diff(after[..., 0].astype(int).mean(axis=0)))
    assert step.argmax() == 40


def test_colors_do_not_depend_on_offset_and_scale():
    x = mx.random.normal((6, 7, 5))
    (colors,) = principal_colors([x])
    (same,) = principal_colors([4 * x + 2])
    assert colors.shape == (6, 7, 3) and np.ptp(colors) == 255
    assert np.abs(colors.astype(int) - same).max() <= 1
    assert (principal_colors([mx.ones((4, 4, 3))])[0] == 0).all()


def test_bad_shapes_are_refused():
    image, features = np.zeros((8, 8, 3), np.uint8), mx.zeros((2, 2, 4))
    with pytest.raises(ValueError, match="'image' must be"):
        before_after(image[..., 0], features, features)
    with pytest.raises(ValueError, match="'image' must be"):
        before_after(image, features[..., :2], features[..., :2])
    with pytest.raises(ValueError, match="must have the channels of 'features' but got 3 and 4"):
        before_after(image, features, features[..., :3])

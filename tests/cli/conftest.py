import os

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.models import NAT, NATConfig
from natten_zoo.pretrained import Record


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A saved model that tells red, green and blue images apart."""
    mx.random.seed(0)
    config = NATConfig(8, (1, 1), (1, 2), kernel_size=3, num_classes=3, drop_path_rate=0.0)
    model = NAT(config).eval()
    images = np.zeros((3, 16, 16, 3), np.float32)
    for channel in range(3):
        images[channel, ..., channel] = 1.0
    features = model.forward_features(mx.array(images))
    with mx.stream(mx.cpu):
        inverse = mx.linalg.pinv(features - features.mean(axis=0))
    model.head.weight = 10 * inverse.T
    model.head.bias = -(features.mean(axis=0) @ model.head.weight.T)
    model.record = Record(
        name="tiny_colors",
        architecture="NAT",
        model=config.to_dict(),
        input_size=16,
        crop_pct=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_classes=3,
        classes=("red", "green", "blue"),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    """Six images in folders by color."""
    folder = tmp_path / "photos"
    for channel, color in enumerate(("red", "green", "blue")):
        for index in range(2):
            pixels = np.zeros((20 + 10 * index, 30, 3), np.uint8)
            pixels[..., channel] = 255
            path = folder / color / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")

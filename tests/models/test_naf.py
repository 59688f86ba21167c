"""NAF against upstream's outputs, and features of any size brought to any size."""

import gzip
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record
from natten_zoo.models import NAF, NAFConfig
from natten_zoo.models.cost import count_cost
from natten_zoo.models.naf import GroupNorm, pool, resize_nearest, rotate
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.readers.reader import Checkpoint
from natten_zoo.pretrained.strict import load_strict
from tests import formula

DATA = Path(__file__).parents[1] / "fixtures/naf"
KEYS = json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))


def error(ours, theirs) -> float:
    """Largest difference of NHWC from NCHW, relative to the scale of the latter."""
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def small(**changes):
    mx.random.seed(0)
    return NAF(NAFConfig.from_dict({"embed_dim": 32, "depth": 1, **changes})).eval()


@pytest.fixture(scope="module")
def weights():
    return {key: mx.array(formula.tensor(key, tuple(shape))) for key, shape in KEYS.items()}


def test_parity(weights):
    model = create_model("naf").eval()
    load_strict(model, model.sanitize(weights))
    with np.load(DATA / "formula.npz") as file:
        data = dict(file)
    image, features = (mx.array(data[k].transpose(0, 2, 3, 1)) for k in ("image", "features"))
    encoded = model.image_encoder(image, image.shape[1:3]).flatten(-2)
    assert error(encoded[:, ::4, ::4, ::16], data["enc_sample"]) < 1e-5
    out = model(image, features)
    assert out.shape == (1, 112, 144, 64)
    assert error(out[:, ::2, ::2, ::4], data["out_sample"]) < 1e-5


def test_parameters_are_upstreams():
    model, record = create_model("naf"), get_record("naf")
    zeros = {name: mx.zeros(shape) for name, shape in KEYS.items()}
    assert {k: v.shape for k, v in tree_flatten(model.parameters())} == {
        k: v.shape for k, v in model.sanitize(zeros).items()
    }
    cost = count_cost(model, mx.zeros((1, 448, 448, 3)), mx.zeros((1, 32, 32, 384)))
    assert cost.params == record.params == 662_528
    attention = 448 * 448 * 9 * 9 * (256 + 384)  # of no layer that is counted
    assert cost.macs + attention == round(record.gmacs * 1e9)
    assert infer(Checkpoint(Path("x.pth"), zeros, "torch"), None).name == "naf"


@pytest.mark.parametrize("cells", [(9, 9), (10, 13), (16, 24)])
@pytest.mark.parametrize("size", [(32, 48), (33, 50), None])
def test_any_size(cells, size):
    image, features = mx.random.normal((2, 48, 72, 3)), mx.random.normal((2, *cells, 12))
    out = small()(image, features, size)
    assert out.shape == (2, *(size or (48, 72)), 12)
    assert mx.isfinite(out).all()
    # Weights of a pixel sum to one and are positive.
    assert out.max() <= features.max() and out.min() >= features.min()
    constant = small()(image, mx.full((2, *cells, 4), 3.0), size)
    np.testing.assert_allclose(constant, 3.0, rtol=1e-5)


def test_a_sharp_edge_of_the_image_sharpens_the_features():
    """The border between two kinds of features follows the image's, within a cell."""
    image = mx.zeros((1, 72, 72, 3))
    image[:, :, 29:] = 1.0  # not where cells meet: those are 8 pixels wide
    features = mx.zeros((1, 9, 9, 4))
    features[:, :, 4:] = 1.0
    features[:, :, 3] = 3 / 8  # as an extractor sees the cell that the edge crosses
    out = small()(image, features)
    column = np.array(out[0, 36, :, 0])
    blurred = np.array(resize_nearest(features, (72, 72))[0, 36, :, 0])
    assert np.diff(column).argmax() == 28 and np.diff(blurred).argmax() == 31
    assert column[29:].mean() > column[:29].mean()


def test_products_after_rotation_depend_on_distance():
    """Shifting a query and a key alike by whole pixels leaves their product."""
    rows, columns = 12, 10
    query, key = (mx.broadcast_to(mx.random.normal((8,)), (1, rows, columns, 1, 8)) for _ in "qk")
    query, key = (np.array(rotate(x, 100.0)[0, :, :, 0], np.float64) for x in (query, key))
    product = np.einsum("yxd,vud->yxvu", query, key)
    for shift in ((0, 0), (2, 3), (-1, 4)):
        y, x = np.mgrid[2:6, 1:5]
        found = product[y, x, y + shift[0], x + shift[1]]
        np.testing.assert_allclose(found, found[0, 0], atol=1e-5)
    assert np.ptp(product[0, 0]) > 0.1


def test_group_norm_keeps_its_digits_on_large_images():
    x = np.random.default_rng(0).standard_normal((1, 160, 200, 16)).astype(np.float32) + 3
    groups = x.astype(np.float64).reshape(1, -1, 2, 8)
    mean, std = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.std))
    expected = ((groups - mean) / np.sqrt(std**2 + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(GroupNorm(2, 16)(mx.array(x)), expected, atol=5e-6)


def test_pooling_and_nearest_are_inverse_for_whole_cells():
    x = mx.random.normal((1, 3, 5, 2))
    large = resize_nearest(x, (12, 10))
    np.testing.assert_allclose(large, np.array(x).repeat(4, 1).repeat(2, 2))
    np.testing.assert_allclose(pool(large, (3, 5)), x, rtol=1e-6)


def test_bad_input_is_refused():
    model, image = small(), mx.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"'image' must be \[batch, height, width, 3\] but got"):
        model(mx.zeros((1, 32, 32, 4)), mx.zeros((1, 9, 9, 8)))
    with pytest.raises(ValueError, match=r"'features' must be \[1, rows, columns, a multiple of 4"):
        model(image, mx.zeros((1, 9, 9, 6)))
    with pytest.raises(ValueError, match="from 9 rows and columns up to the output's"):
        model(image, mx.zeros((1, 8, 9, 8)))
    with pytest.raises(ValueError, match="from 9 rows and columns up to the output's"):
        model(image, mx.zeros((1, 20, 20, 8)), (18, 20))
    with pytest.raises(ValueError, match="'image' must have 2 pixels or more per axis but got"):
        model(image[:, :1], mx.zeros((1, 9, 9, 8)), (9, 9))
    with pytest.raises(ValueError, match="NAF has no classifier"):
        model.reset_classifier(3)
    with pytest.raises(ValueError, match="'embed_dim' must be divisible by 4 times 'num_heads'"):
        NAFConfig(embed_dim=40)


def test_gradients_reach_every_parameter():
    model = small()
    image, features = mx.random.normal((1, 36, 36, 3)), mx.random.normal((1, 9, 9, 8))

    def loss(parameters):
        model.update(parameters)
        return model(image, features).square().mean()

    gradients = dict(tree_flatten(mx.grad(loss)(model.parameters())))
    assert [name for name, value in gradients.items() if not mx.any(value != 0).item()] == []


def test_save_and_load(tmp_path):
    model = small()
    again = NAF.from_pretrained(model.save_pretrained(tmp_path / "model"))
    inputs = mx.random.normal((1, 20, 30, 3)), mx.random.normal((1, 10, 10, 8))
    assert mx.array_equal(again(*inputs), model(*inputs))

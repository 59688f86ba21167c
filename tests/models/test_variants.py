"""All published variants: keys, shapes, parameter counts and multiply-adds."""

import gzip
import json
import re
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.models.cost import count_cost

KEYS = Path(__file__).parents[1] / "fixtures/models/keys.json.gz"
UPSTREAM = json.loads(gzip.decompress(KEYS.read_bytes()))
# Printed in the papers and in upstream's tables: millions of parameters, GFLOPs, top-1.
PUBLISHED = {
    "nat_mini": (20, 2.7, 81.8),
    "nat_tiny": (28, 4.3, 83.2),
    "nat_small": (51, 7.8, 83.7),
    "nat_base": (90, 13.7, 84.3),
    "dinat_mini": (20, 2.7, 81.8),
    "dinat_tiny": (28, 4.3, 82.7),
    "dinat_small": (51, 7.8, 83.8),
    "dinat_base": (90, 13.7, 84.4),
    "dinat_large": (200, 30.6, 86.6),
    "dinat_large_384": (200, 89.7, 87.4),
    "dinat_large_384_11x11": (200, 92.4, 87.5),
    "dinat_large_21k": (None, None, None),
    "dinat_large_21k_11x11": (None, None, None),
    "dinat_s_tiny": (28, 4.5, 81.8),
    "dinat_s_small": (50, 8.7, 83.5),
    "dinat_s_base": (88, 15.4, 83.8),
    "dinat_s_large": (197, 34.5, 86.5),
    "dinat_s_large_384": (197, 101.5, 87.4),
    "dinat_s_large_21k": (None, None, None),
    "nat_isotropic_small": (22, 4.3, 80.0),
    "dinat_isotropic_small": (22, 4.3, 80.8),
    "vitrpb_small": (22, 4.6, 81.2),
    "nat_isotropic_base": (86, 16.9, 81.6),
    "dinat_isotropic_base": (86, 16.9, 82.1),
    "vitrpb_base": (86, 17.5, 82.5),
}
CHANNELS_LAST = (0, 2, 3, 1)


def test_every_published_variant_is_there():
    assert set(PUBLISHED) == set(UPSTREAM) <= set(list_models(pretrained=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_upstreams(name):
    shapes = {
        key: tuple(shape[axis] for axis in CHANNELS_LAST) if len(shape) == 4 else tuple(shape)
        for key, shape in UPSTREAM[name].items()
        if not key.endswith("relative_position_index")
    }
    parameters = dict(tree_flatten(create_model(name).parameters()))  # lazy: nothing is drawn
    assert {key: value.shape for key, value in parameters.items()} == shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_cost(name):
    record = get_record(name)
    side = record.input_size
    cost = count_cost(create_model(name).eval(), mx.zeros((1, side, side, 3)))
    assert cost.params == record.params
    assert cost.macs == round(record.gmacs * 1e9)
    params, gmacs, top1 = PUBLISHED[name]
    assert record.top1 == top1
    if params is not None:
        assert cost.params == pytest.approx(params * 1e6, rel=0.03)
        assert cost.macs == pytest.approx(gmacs * 1e9, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_dilations_fit_the_feature_maps(name):
    record = get_record(name)
    levels = record.model.get("dilations")
    if levels is None or name == "dinat_large_21k_11x11":  # this one pads, by its authors' choice
        return
    for index, level in enumerate(levels):
        size = record.input_size // 4 // 2**index
        largest = max(1, size // record.model["kernel_size"])
        assert level == [largest if i % 2 else 1 for i in range(len(level))]


def test_records_are_complete():
    for name in PUBLISHED:
        record = get_record(name)
        assert record.license == "MIT" and record.paper and record.source
        assert re.fullmatch(
            r"https://shi-labs\.com/projects/(di)?nat/checkpoints/.*\.pth", record.url
        )
        assert (record.input_size, record.crop_pct) in ((224, 0.875), (384, 1.0))
        assert ("384" in name) == (record.input_size == 384)
        assert record.num_classes == (21841 if "21k" in name else 1000)


def test_the_embedded_model_is_small():
    model = create_model("nat_pico_fashion")
    assert count_cost(model, mx.zeros((1, 28, 28, 1))).params <= 1_000_000
    assert [x.shape[1:] for x in model.features(mx.zeros((1, 28, 28, 1)))] == [
        (28, 28, 32),
        (14, 14, 64),
        (7, 7, 128),
    ]

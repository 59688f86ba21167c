"""Names, records, overrides, and weights fitted to them."""

import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.configs.record import Record
from natten_zoo.data import Preprocess
from natten_zoo.models import NAT, NATConfig
from natten_zoo.pretrained.adapt import adapt, adapt_input_channels, resize_bias_table
from natten_zoo.pretrained.registry import model_class
from natten_zoo.pretrained.strict import load_strict, mismatches

BICUBIC = Path(__file__).parents[1] / "fixtures/models/bicubic.npz"
SMALL = NATConfig(8, (1, 1), (1, 2), kernel_size=3, num_classes=5)


def small(**changes):
    return NAT(NATConfig.from_dict({**SMALL.to_dict(), **changes}))


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def test_list_models():
    assert list_models("d*nat_s_*") == [
        "dinat_s_base", "dinat_s_large", "dinat_s_large_21k", "dinat_s_large_384",
        "dinat_s_small", "dinat_s_tiny",
    ]  # fmt: skip
    assert len(list_models(pretrained=True)) >= 25
    assert list_models("no such*") == []


def test_records_by_name_and_by_repository():
    record = get_record("nat_mini")
    assert record is get_record("shi-labs/nat-mini-in1k-224")
    assert (record.architecture, record.top1, record.classes) == ("NAT", 81.8, "imagenet-1k")


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"but got 'natmini'; the nearest names are nat_mini"):
        create_model("natmini")
    with pytest.raises(ValueError, match=r"but got '\?'; see list_models"):
        get_record("?")
    with pytest.raises(ValueError, match=r"'architecture' must be one of NAT, .* but got 'Swin'"):
        model_class("Swin")
    with pytest.raises(ValueError, match=r"fields must be among .* but got color"):
        Record.from_dict({"name": "x", "architecture": "NAT", "model": {}, "color": "red"})


def test_create_model_takes_overrides():
    model = create_model("dinat_mini", num_classes=10, in_chans=1, kernel_size=5, dilations=None)
    assert model.config.num_classes == 10 and model.record.name == "dinat_mini"
    assert model.levels[0].blocks[1].attn.neighborhood.dilation == (1, 1)
    with pytest.raises(ValueError, match=r"\[NATConfig\] arguments must be among"):
        create_model("nat_mini", window=3)


def test_the_record_claims_only_what_is_true_with_the_overrides(tmp_path):
    own = get_record("nat_pico_fashion")
    file = create_model(own.name).save_pretrained(tmp_path / "own")
    same = create_model(own.name, pretrained=file, drop_path_rate=0.5, kernel_size=7, num_classes=3)
    assert own.top1 and same.record == own  # 7 is its own, and saving looks at the classes
    other = create_model(own.name, pretrained=file, kernel_size=5, in_chans=3).record
    assert (other.top1, other.params, other.gmacs) == (None, None, None)
    assert other.mean == own.mean * 3 and other.std == own.std * 3
    gray = create_model("nat_mini", in_chans=1)
    assert Preprocess.from_record(gray.record).channels == 1
    assert gray.record.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


def test_random_weights_have_no_published_accuracy():
    fresh, own = create_model("upernet_nat_mini").record, get_record("upernet_nat_mini")
    assert (fresh.miou, fresh.miou_multi_scale, fresh.params) == (None, None, own.params)
    assert create_model("nat_mini").record.top1 is None


def test_pretrained_weights_follow_the_overrides(tmp_path):
    source = create_model("nat_pico_fashion")
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), parameters(source), metadata={"format": "mlx"})
    same = create_model("nat_pico_fashion", pretrained=file)
    assert not same.training
    assert all(mx.array_equal(parameters(same)[k], v) for k, v in parameters(source).items())
    changed = create_model(
        "nat_pico_fashion", pretrained=file, num_classes=3, in_chans=3, kernel_size=5
    )
    assert changed(mx.zeros((1, 28, 28, 3))).shape == (1, 3)
    assert mx.array_equal(changed.levels[1].blocks[3].mlp.fc1.weight,
                          source.levels[1].blocks[3].mlp.fc1.weight)  # fmt: skip
    with pytest.raises(ValueError, match=r"parameters but \d+ of them do not:"):
        create_model("nat_mini", pretrained=file)


@pytest.mark.parametrize("case", ["up", "down", "rect"])
def test_bias_tables_resize_as_torch_does(case):
    with np.load(BICUBIC) as file:
        table, expected = file[f"{case}::table"], file[f"{case}::resized"]
    resized = resize_bias_table(mx.array(table), expected.shape[1:])
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_resizing_to_the_same_shape_changes_nothing():
    table = mx.random.normal((2, 5, 7, 3))
    np.testing.assert_allclose(resize_bias_table(table, (5, 7, 3)), table, atol=1e-7)


def test_input_channels():
    weight = mx.random.normal((4, 3, 3, 3))
    image = mx.random.normal((1, 8, 8, 1))
    gray = mx.conv2d(image, adapt_input_channels(weight, 1))
    np.testing.assert_allclose(gray, mx.conv2d(mx.repeat(image, 3, -1), weight), atol=1e-5)
    five = adapt_input_channels(weight, 5)
    assert five.shape == (4, 3, 3, 5)
    np.testing.assert_allclose(five[..., 3], weight[..., 0] * 0.6, rtol=1e-6)


def test_adapt_fits_everything_that_was_overridden_and_says_so(caplog):
    source = parameters(small())
    changes = {"kernel_size": 5, "in_chans": 1, "num_classes": 2}
    model = small(**changes)
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        weights = adapt(source, model, changes)
    assert mismatches(model, weights) == []
    said = caplog.text
    assert "2 bias tables resized, (5, 5) -> (9, 9)" in said
    assert "adapted to 1 input channels" in said
    assert "classifier of 5 classes replaced by a fresh one of 2" in said
    load_strict(model, weights)
    same = "levels.0.blocks.0.attn.qkv.weight"
    assert mx.array_equal(parameters(model)[same], source[same])


def test_adapt_without_overrides_changes_nothing():
    source = parameters(small())
    weights = adapt(source, small(num_classes=2, kernel_size=5), ())
    assert weights == source


def test_a_model_without_head_leaves_it_out():
    assert (
        mismatches(
            small(num_classes=0), adapt(parameters(small()), small(num_classes=0), {"num_classes"})
        )
        == []
    )


def test_strict_loading_lists_every_key_with_both_shapes():
    model = small()
    before = parameters(model)
    weights = parameters(small(num_classes=3))
    del weights["norm.bias"]
    weights["levels.0.blocks.0.attn.extra"] = mx.zeros((2, 2))
    with pytest.raises(ValueError) as error:
        load_strict(model, weights, "file.safetensors")
    assert str(error.value).splitlines() == [
        "[NAT] file.safetensors must fit the model's parameters but 4 of them do not:",
        "  head.bias: the model has (5,), the file (3,)",
        "  head.weight: the model has (5, 16), the file (3, 16)",
        "  levels.0.blocks.0.attn.extra: unexpected, the file has (2, 2)",
        "  norm.bias: missing, the model has (16,)",
    ]
    assert parameters(model).keys() == before.keys()
    assert all(mx.array_equal(value, before[name]) for name, value in parameters(model).items())

"""The model of sequences."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record
from natten_zoo.models import NAT1D, NAT1DConfig
from natten_zoo.models.cost import count_cost
from natten_zoo.pretrained.card import model_card

SMALL = NAT1DConfig(8, 2, (1, 3), kernel_size=3, tokenizer_stride=2, in_chans=2, num_classes=3)


@pytest.fixture
def model() -> NAT1D:
    mx.random.seed(0)
    return NAT1D(SMALL).eval()


@pytest.mark.parametrize("length", [40, 17, 3, 1])
def test_any_length(model, length):
    x = mx.random.normal((2, length, 2))
    assert model(x).shape == (2, 3)
    assert [tokens.shape for tokens in model.features(x)] == [(2, -(-length // 2), 8)] * 2


def test_a_token_sees_as_far_as_the_windows_reach(model):
    x = mx.random.normal((1, 80, 2))
    changed = mx.concatenate([x[:, :40], x[:, 40:41] + 1, x[:, 41:]], axis=1)
    first, last = (
        np.flatnonzero(np.abs(np.array(a - b)).max((0, 2)) > 1e-7)
        for a, b in zip(model.features(x), model.features(changed), strict=True)
    )
    # Tokens 19 to 21 are made of sample 40; windows reach 1 token further, and then 3.
    assert first.tolist() == list(range(18, 23))
    assert last.tolist() == list(range(15, 26))


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    x = mx.random.normal((2, 30, 2))
    assert mx.array_equal(NAT1D.from_pretrained(tmp_path / "m")(x), model(x))
    assert NAT1D.from_pretrained(tmp_path / "m").config == SMALL


def test_samples_do_not_mix_and_dtypes_stay(model):
    x = mx.random.normal((3, 20, 2))
    np.testing.assert_allclose(np.array(model(x)[1:2]), np.array(model(x[1:2])), atol=1e-5)
    model.set_dtype(mx.bfloat16)
    assert model(x.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_layers_are_as_the_configuration_says():
    model = create_model("nat1d_mnist1d", dilations=(1, 2, 4), drop_path_rate=0.2)
    assert [layer.attn.neighborhood.dilation for layer in model.layers] == [(1,), (2,), (4,)]
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.1, 0.2])


def test_the_record_counts_right():
    record, model = get_record("nat1d_mnist1d"), create_model("nat1d_mnist1d")
    cost = count_cost(model, mx.zeros((1, 40, 1)))
    assert cost.params == record.params == sum(v.size for _, v in tree_flatten(model.parameters()))
    assert cost.macs == pytest.approx(record.gmacs * 1e9)


def test_the_card_shows_how_it_is_used(tmp_path, monkeypatch):
    mx.random.seed(0)
    create_model("nat1d_mnist1d").save_pretrained(tmp_path / "me" / "m")
    card = str(model_card(create_model("nat1d_mnist1d"), "me/m"))
    assert "pipeline_tag: audio-classification" in card and "divide by [1.0]" in card
    monkeypatch.chdir(tmp_path)  # where "me/m" is a folder
    scope: dict = {}
    exec(card.split("```python")[1].split("```")[0], scope)
    assert scope["logits"].shape == (1, 10)

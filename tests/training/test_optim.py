from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.pretrained import create_model
from natten_zoo.training import Recipe
from natten_zoo.training.optim import (
    Packing,
    Updater,
    average,
    choose_trainable,
    decays,
    layer_rates,
    make_schedule,
)


def rate(recipe: Recipe, step: int) -> float:
    return float(make_schedule(recipe, steps_per_epoch=10)(mx.array(step, mx.uint64)))


def test_cosine_rises_then_falls_to_the_floor():
    recipe = Recipe(lr=1.0, min_lr=0.1, epochs=10, warmup_epochs=2)
    assert rate(recipe, 0) == pytest.approx(1e-3)
    assert rate(recipe, 10) == pytest.approx(0.5005)
    assert rate(recipe, 20) == pytest.approx(1.0)
    assert rate(recipe, 60) == pytest.approx(0.55)
    assert rate(recipe, 100) == pytest.approx(0.1)


def test_step_and_constant_schedules():
    step = Recipe(lr=1.0, epochs=10, warmup_epochs=0, schedule="step")
    assert [rate(step, t) for t in (0, 59, 60, 84, 85)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    constant = Recipe(lr=0.3, epochs=10, warmup_epochs=0, schedule="constant")
    assert rate(constant, 99) == pytest.approx(0.3)


def test_decay_spares_norms_biases_layer_scale_and_rpb():
    shapes = Packing(create_model("nat_pico_fashion", layer_scale=1e-5).parameters()).shapes
    spared = {name.rpartition(".")[2] for name in shapes if not decays(name, shapes[name])}
    decayed = {name for name in shapes if decays(name, shapes[name])}
    assert spared == {"bias", "weight", "rpb", "gamma1", "gamma2"}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert "levels.0.blocks.0.attn.qkv.weight" in decayed and "patch_embed.proj.0.weight" in decayed


def test_packing_is_undone_by_unpacking():
    tree = create_model("nat_pico_fashion").trainable_parameters()
    packing = Packing(tree)
    vector = packing.pack(tree)
    assert vector.size % 64 == 0 and vector.size >= sum(packing.sizes)
    back = dict(tree_flatten(packing.unpack(vector)))
    assert back.keys() == dict(tree_flatten(tree)).keys()
    assert all(mx.array_equal(back[name], value) for name, value in tree_flatten(tree))


@pytest.mark.parametrize("name", ["nat_pico_fashion", "dinat_s_tiny", "nat_isotropic_small"])
def test_layer_decay_falls_from_the_head_down(name):
    model = create_model(name)
    names = [n for n, _ in tree_flatten(model.parameters())]
    rates = layer_rates(names, 0.5, model.stages())
    assert rates["head.weight"] == rates["norm.weight"] == 1
    assert {n for n in names if rates[n] == min(rates.values())} == {
        n for n in names if n.startswith("patch_embed")
    }
    blocks = [n for n in names if n.endswith("attn.qkv.weight")]
    assert [rates[n] for n in blocks] == sorted(rates[n] for n in blocks)
    assert len({rates[n] for n in blocks}) == len(blocks)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("upernet_nat_mini", "backbone.patch_embed"),
        ("nat3d_pico", "patch_embed"),
        ("na_unetr_pico", "patch_embed"),
        ("nat1d_mnist1d", "patch_embed"),
        ("harmonix-fold0", "embeddings"),
    ],
)
def test_every_model_says_how_its_layers_are_stacked(name, lowest):
    model = create_model(name)
    names = [n for n, _ in tree_flatten(model.parameters())]
    rates = layer_rates(names, 0.5, model.stages())
    assert {n for n in names if rates[n] == min(rates.values())} == {
        n for n in names if n.startswith(lowest)
    }
    blocks = [rates[n] for n in names if n.endswith("mlp.fc1.weight")]
    assert blocks == sorted(blocks) and blocks[-1] < max(rates.values()) == 1


def test_layer_decay_is_refused_where_nothing_tells_the_layers():
    assert layer_rates(["a.weight"], 1.0, []) == {"a.weight": 1.0}
    with pytest.raises(ValueError, match="'layer_decay' must be 1 for a model that tells no"):
        layer_rates(["a.weight"], 0.5, [])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_an_update_is_the_optimizers_plus_decoupled_decay(optimizer):
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.5, schedule="constant",
                    warmup_epochs=0, layer_decay=0.5)  # fmt: skip
    parameters = {"levels": [{"blocks": [{"fc": {"weight": mx.ones((2, 2)), "bias": mx.ones(2)}}]}]}
    packing = Packing(parameters)
    updater = Updater(recipe, make_schedule(recipe, 1), packing, ["levels.0.blocks.0"])
    moved = packing.unpack(updater.apply(packing.pack(parameters), packing.pack(parameters)))
    fc = moved["levels"][0]["blocks"][0]["fc"]
    # The first update of each of them is lr against a gradient of 1; this layer learns at half.
    np.testing.assert_allclose(np.array(fc["bias"]), 1 - 0.05, atol=1e-6)
    np.testing.assert_allclose(np.array(fc["weight"]), 1 - 0.05 - 0.5 * 0.1 * 0.5, atol=1e-6)


def test_the_average_warms_up():
    def one_step(step: int) -> float:
        return average(mx.zeros(1), mx.ones(1), 0.999, mx.array(step)).item()

    assert one_step(0) == pytest.approx(0.9)
    assert one_step(10**6) == pytest.approx(0.001, rel=1e-4)


def test_what_learns():
    model = create_model("nat_pico_fashion")
    choose_trainable(model, Recipe(tune="head"))
    assert {n for n, _ in tree_flatten(model.trainable_parameters())} == {
        "head.weight",
        "head.bias",
    }
    model = create_model("nat_pico_fashion")
    choose_trainable(model, Recipe(freeze=["patch_embed", "levels.0"]))
    names = [n for n, _ in tree_flatten(model.trainable_parameters())]
    assert not any(n.startswith(("patch_embed", "levels.0")) for n in names) and names
    with pytest.raises(ValueError, match="no part of the model is called 'stem'"):
        choose_trainable(nn.Linear(1, 1), Recipe(freeze=["stem"]))


def test_freezing_by_what_names_begin_with():
    def learning(*freeze: str, **options: str) -> set[str]:
        model = create_model("nat_pico_fashion")
        choose_trainable(model, Recipe(freeze=list(freeze), **options))
        return {name for name, _ in tree_flatten(model.trainable_parameters())}

    everything = learning()
    assert {n.partition(".")[0] for n in learning("levels")} == {"patch_embed", "norm", "head"}
    block = "levels.1.blocks.1"
    assert everything - learning(block) == {n for n in everything if n.startswith(f"{block}.")}
    assert everything - learning("head.bias", f"{block}.attn.rpb") == {
        "head.bias",
        f"{block}.attn.rpb",
    }
    with pytest.raises(ValueError, match="no part of the model is called 'level'"):
        learning("level")
    with pytest.raises(ValueError, match="'freeze' must leave something to learn but got head"):
        learning("head", tune="head")

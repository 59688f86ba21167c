from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.pretrained import create_model
from natten_zoo.training.lora import LoRALinear, add_lora, fused


def names(tree) -> set[str]:
    return {name for name, _ in tree_flatten(tree)}


@pytest.fixture
def model():
    mx.random.seed(0)
    tiny = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "kernel_size": 3}
    return create_model("nat_pico_fashion", **tiny).eval()


def test_lora_starts_as_the_model_and_trains_little_else_than_itself(model):
    x = mx.random.normal((2, 28, 28, 1))
    before = model(x)
    assert add_lora(model, 2, 2.0, ["qkv", "fc1"]) == 4
    assert mx.array_equal(model(x), before)
    learning = names(model.trainable_parameters())
    assert {n.rpartition(".")[2] for n in learning - {"head.weight", "head.bias"}} == {
        "lora_a",
        "lora_b",
    }


def test_fusing_keeps_the_function_and_restores_the_names(model):
    plain = names(model.parameters())
    add_lora(model, 2, 2.0, ["qkv", "proj", "fc1", "fc2"])
    for _, module in model.named_modules():
        if isinstance(module, LoRALinear):
            module.lora_b = mx.random.normal(module.lora_b.shape)
    x = mx.random.normal((2, 28, 28, 1))
    adapted, learning = model(x), names(model.trainable_parameters())
    with fused(model):
        assert names(model.parameters()) == plain
        np.testing.assert_allclose(np.array(model(x)), np.array(adapted), atol=2e-4)
    assert names(model.trainable_parameters()) == learning


def test_bad_arguments(model):
    with pytest.raises(ValueError, match=r"'rank' must be in 1\.\.4 but got 5"):
        LoRALinear(nn.Linear(4, 8), rank=5)
    with pytest.raises(ValueError, match="no linear layer is called query"):
        add_lora(model, 2, 2.0, ["query"])

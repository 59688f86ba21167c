import math

import mlx.core as mx
import mlx.nn as nn

from natten_zoo.layers import NeighborhoodAttention2D, PatchEmbed, TransformerLayer, init_weights


def test_distributions_are_upstreams():
    mx.random.seed(0)
    layer = TransformerLayer(
        NeighborhoodAttention2D(128, 4, 13, rel_pos_bias=True), 128, layer_scale=1e-5
    )
    model = nn.Sequential(PatchEmbed(4, 3, 512), layer)
    init_weights(model)
    for weight in (layer.attn.qkv.weight, layer.mlp.fc2.weight, layer.attn.rpb):
        assert abs(weight.std().item() - 0.02) < 0.001 and abs(weight.mean().item()) < 0.001
    for bias in (layer.attn.qkv.bias, layer.mlp.fc1.bias, layer.norm1.bias):
        assert (bias == 0).all()
    assert (layer.norm1.weight == 1).all() and (layer.gamma1 == mx.array(1e-5)).all()
    conv, bound = model.layers[0].proj, 1 / math.sqrt(3 * 4 * 4)
    for values in (conv.weight, conv.bias):
        assert mx.abs(values).max() <= bound
        assert abs(values.std().item() - bound / math.sqrt(3)) < 0.01 * bound + 0.005

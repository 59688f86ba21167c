"""Initial values as the published training code draws them."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn


def init_weights(model: nn.Module) -> None:
    """Draws linear weights from N(0, 0.02) with zero biases, convolutions as torch does.

    MLX draws convolution weights from torch's distribution but starts their biases at zero, where
    torch draws them too. Norms keep gain 1 and bias 0; layers with more parameters draw their own.
    """
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = mx.random.normal(module.weight.shape, scale=0.02)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and "bias" in module:
            bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
            module.bias = mx.random.uniform(-bound, bound, module.bias.shape)

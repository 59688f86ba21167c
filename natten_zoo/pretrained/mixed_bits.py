"""Which layers get more bits: those whose quantization changes a model's answers most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from .quantize import Quantization, as_quantized, linear_layers


def losses(model: nn.Module, batches: Sequence[mx.array], how: Quantization) -> dict[str, float]:
    r"""What each linear layer loses when it alone is quantized.

    $$\mathrm{KL}(p \,\|\, q) = \sum_c p_c \log \frac{p_c}{q_c}$$

    of the model's class probabilities before and after, a mean over all inputs; no labels are
    needed. Layers that the groups do not divide are left out.

    Args:
        model: A classifier in evaluation mode; it is as before when this returns.
        batches: Inputs, prepared, not none.
        how: What is tried.
    """
    before = [nn.log_softmax(model(x).astype(mx.float32)) for x in batches]
    mx.eval(before)
    measured = {}
    for name, layer in linear_layers(model).items():
        if not how.fits(layer):
            continue
        model.update_modules(tree_unflatten([(name, as_quantized(layer, how))]))
        after = [nn.log_softmax(model(x).astype(mx.float32)) for x in batches]
        parts = [(mx.exp(p) * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
        measured[name] = float(mx.concatenate(parts).mean().item())  # type: ignore[arg-type]
        model.update_modules(tree_unflatten([(name, layer)]))
    return measured


def worst(model: nn.Module, measured: Mapping[str, float], share: float) -> list[str]:
    """The layers that lose most per weight, until they have a share of all measured weights.

    Examples:
        >>> import mlx.nn as nn
        >>> model = nn.Sequential(nn.Linear(64, 1), nn.Linear(64, 3), nn.Linear(64, 2))
        >>> worst(model, {"layers.0": 1.0, "layers.1": 9.0, "layers.2": 1.0}, share=0.5)
        ['layers.1']
    """
    weights = {name: linear_layers(model)[name].weight.size for name in measured}
    order = sorted(measured, key=lambda name: -measured[name] / weights[name])
    room, chosen = share * sum(weights.values()), []
    for name in order:
        if weights[name] <= room:
            chosen.append(name)
            room -= weights[name]
    return chosen

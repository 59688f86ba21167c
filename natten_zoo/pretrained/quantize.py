"""Linear layers in 4, 6 or 8 bits; with the configuration keys of mlx-lm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)
KEY = "quantization"  # in config.json; the Hub reads the same under `quantization_config`


def quantize(model: nn.Module, bits: int = 8, group_size: int = 64) -> tuple[int, list[str]]:
    """Quantizes the linear layers of a model, in place.

    Weights are stored as integers of `bits` bits, with a scale and an offset for every
    `group_size` of them along the input. Convolutions, norms and biases stay: in these models
    they are a small part of the weights, and MLX has no quantized convolution.

    Args:
        model: The model.
        bits: 4, 6 or 8.
        group_size: 32, 64 or 128; must divide the inputs of a layer, or the layer stays.

    Returns:
        How many layers were quantized, and the names of the linear layers that stay.

    Raises:
        ValueError: An argument is out of range, or no layer can be quantized.
    """
    if bits not in BITS:
        raise ValueError(f"[quantize] 'bits' must be one of {BITS} but got {bits}.")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"[quantize] 'group_size' must be 32, 64 or 128 but got {group_size}.")
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    stay = [n for n, m in linear.items() if m.weight.shape[-1] % group_size]
    if len(stay) == len(linear):
        raise ValueError(
            f"[quantize] 'group_size' must divide the inputs of a layer but {group_size} divides "
            "none."
        )
    chosen = linear.keys() - set(stay)
    nn.quantize(model, group_size, bits, class_predicate=lambda name, _: name in chosen)
    return len(chosen), stay


def quantization(model: nn.Module) -> dict[str, Any] | None:
    """How a model is quantized, for its `config.json`; None if it is not."""
    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear):
            return {"group_size": module.group_size, "bits": module.bits, "mode": "affine"}
    return None


def refuse_quantized(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights are to be trained or changed: quantized ones cannot be.

    Args:
        model: The model.
        name: Whose argument it is and its name, as messages begin.

    Raises:
        ValueError: It is quantized.
    """
    if quantization(model):
        raise ValueError(
            f"{name} must have floating point weights but got a quantized model; take the one that "
            "it was made of, and quantize what comes out."
        )


def prepare(model: nn.Module, config: Mapping[str, Any] | None, weights: Collection[str]) -> None:
    """Gives a model the quantized layers that a checkpoint has weights for.

    Raises:
        ValueError: The configuration does not say how they are quantized.
    """
    settings = (config or {}).get(KEY)
    if settings:
        if not isinstance(settings, Mapping) or not (
            settings.get("bits") in BITS and settings.get("group_size") in GROUP_SIZES
        ):
            raise ValueError(
                f"its config.json is wrong: {KEY!r} must be 'bits', one of {BITS}, and "
                f"'group_size', one of {GROUP_SIZES}, but got {repr(settings)[:100]}"
            )
        nn.quantize(
            model,
            settings["group_size"],
            settings["bits"],
            class_predicate=lambda name, _: f"{name}.scales" in weights,
        )


def size(model: nn.Module) -> int:
    """Bytes of all weights."""
    arrays: Any = tree_flatten(model.parameters())
    return sum(value.nbytes for _, value in arrays)

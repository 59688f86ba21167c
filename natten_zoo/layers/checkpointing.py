"""Gradient checkpointing: keep a layer's input only and compute the rest twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class _Replay(nn.Module):
    """Stands in for DropPath with masks that were drawn outside."""

    def __init__(self, masks: Iterator[mx.array]) -> None:
        super().__init__()
        self._masks = masks

    def __call__(self, x: mx.array) -> mx.array:
        return x * next(self._masks).astype(x.dtype)


def checkpoint_layers(model: nn.Module) -> int:
    """Let the layers of a model forget their activations until the backward pass.

    A layer says that it can be computed twice by `BRANCHES`: how often it calls its
    `drop_path`.

    Returns:
        How many layers do so.

    Raises:
        ValueError: The model has no such layer, or one has dropout, whose masks would differ in the
            second computation.
    """
    layers: list[nn.Module] = [m for m in model.modules() if hasattr(type(m), "BRANCHES")]
    if not layers:
        raise ValueError(
            f"[grad_checkpoint] needs layers that say their BRANCHES; a {type(model).__name__} has "
            "none."
        )
    for layer in layers:
        if any(isinstance(m, nn.Dropout) and m._p_1 < 1 for m in layer.modules()):
            raise ValueError("[grad_checkpoint] needs models without dropout; 'drop_path' is fine.")
        layer.__class__ = _checkpointed(type(layer))
    return len(layers)


@cache
def _checkpointed(layer_type: type[nn.Module]) -> type[nn.Module]:

    class Checkpointed(layer_type):  # type: ignore[misc, valid-type]
        """A layer that is computed twice."""

        BRANCHES: int
        drop_path: nn.Module

        def __call__(self, x: mx.array) -> mx.array:
            if not self.training:
                return super().__call__(x)
            # The second computation would draw new masks, so both get them from here.
            ones = mx.ones((x.shape[0], *[1] * (x.ndim - 1)))
            masks = [self.drop_path(ones) for _ in range(self.BRANCHES)]

            def compute(parameters: dict[str, Any], x: mx.array, masks: list[mx.array]) -> mx.array:
                drop_path = self.drop_path
                self.update(parameters)
                self.drop_path = _Replay(iter(masks))
                try:
                    return layer_type.__call__(self, x)
                finally:
                    self.drop_path = drop_path

            return mx.checkpoint(compute)(self.trainable_parameters(), x, masks)

    return Checkpointed

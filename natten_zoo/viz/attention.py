"""What a query of a neighborhood attention layer sees, and how it weighs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers import NeighborhoodAttention
from ..layers.padding import pad_to

# Recording patches a class, so only one thread may record at a time.
_lock = Lock()


@dataclass(frozen=True)
class LayerView:
    """An attention layer together with what went into it.

    Attributes:
        name: The layer's path in the model, ``levels.0.blocks.1.attn``.
        layer: The layer.
        input: ``[1, *spatial, channels]``.
    """

    name: str
    layer: NeighborhoodAttention
    input: mx.array

    @property
    def size(self) -> tuple[int, ...]:
        """Tokens per axis."""
        return self.input.shape[1:-1]

    def token(self, point: tuple[float, ...]) -> tuple[int, ...]:
        """The token at a point given as fractions of the axes, each in [0, 1)."""
        return tuple(int(p * n) for p, n in zip(point, self.size, strict=True))

    def window(self, query: tuple[int, ...]) -> list[np.ndarray]:
        """The token indices that a query sees, one array per axis.

        Indices from ``size`` on are the zero padding of a map smaller than the window.
        """
        hood = self.layer.neighborhood
        size = np.maximum(self.size, hood.minimum_size if self.layer.pad_small_inputs else 0)
        keys = []
        for axis, (position, length) in enumerate(zip(query, size.tolist(), strict=True)):
            first, count = hood.window(axis, position, length)
            keys.append(first + hood.dilation[axis] * np.arange(count))
        return keys

    def weights(self, query: tuple[int, ...]) -> np.ndarray:
        r"""Attention weights of one query, :math:`\mathrm{softmax}_j(s \, q \cdot k_j + b)`.

        Returns:
            ``[heads, *keys]``, summing to 1 per head; keys as in :meth:`window`.
        """
        layer, keys = self.layer, self.window(query)
        x = (
            pad_to(self.input, layer.neighborhood.minimum_size)
            if layer.pad_small_inputs
            else (self.input)
        )
        q, k, _ = (np.array(part.astype(mx.float32)[0]) for part in layer._project(x))
        k = np.repeat(k[np.ix_(*keys)], layer.num_heads // layer.num_kv_heads, axis=-2)
        logits = layer.scale * np.einsum("hd,...hd->h...", q[tuple(query)], k)
        if "rpb" in layer:
            hood = layer.neighborhood
            steps = [
                (index - position) // dilation + kernel - 1
                for index, position, dilation, kernel in zip(
                    keys, query, hood.dilation, hood.kernel_size, strict=True
                )
            ]
            table = np.array(layer.rpb.astype(mx.float32))
            logits = logits + table[np.ix_(range(layer.num_heads), *steps)]
        axes = tuple(range(1, logits.ndim))
        weights = np.exp(logits - logits.max(axis=axes, keepdims=True))
        return weights / weights.sum(axis=axes, keepdims=True)

    def weight_map(self, query: tuple[int, ...]) -> np.ndarray:
        """The mean weight over the heads on the whole map ``[*spatial]``, 0 outside the window."""
        keys, weights = self.window(query), self.weights(query).mean(axis=0)
        size = [max(n, int(k.max()) + 1) for n, k in zip(self.size, keys, strict=True)]
        whole = np.zeros(size, np.float32)
        whole[np.ix_(*keys)] = weights
        return whole[tuple(slice(n) for n in self.size)]


def view_layers(model: nn.Module, inputs: mx.array) -> list[LayerView]:
    """Runs a model and returns its neighborhood attention layers in the order they ran.

    The model is called but, arrays being lazy, computes only what is looked at later.

    Args:
        model: Any model with layers of :class:`NeighborhoodAttention`.
        inputs: A batch of one.

    Example:
        >>> import mlx.core as mx
        >>> from natten_zoo import create_model
        >>> from natten_zoo.viz import view_layers
        >>> views = view_layers(create_model("dinat_mini"), mx.zeros((1, 224, 224, 3)))
        >>> views[1].name, views[1].size
        ('levels.0.blocks.1.attn', (56, 56))
        >>> [keys.tolist() for keys in views[1].window((0, 20))]
        [[0, 8, 16, 24, 32, 40, 48], [4, 12, 20, 28, 36, 44, 52]]
    """
    names = {
        id(module): name
        for name, module in model.named_modules()
        if isinstance(module, NeighborhoodAttention)
    }
    with _lock, _recording() as calls:
        model(inputs)
    return [LayerView(names[id(layer)], layer, x) for layer, x in calls if id(layer) in names]


@contextmanager
def _recording() -> Iterator[list[tuple[Any, mx.array]]]:
    calls: list[tuple[Any, mx.array]] = []
    original = NeighborhoodAttention.__call__

    def call(layer: NeighborhoodAttention, x: mx.array) -> mx.array:
        calls.append((layer, x))
        return original(layer, x)

    NeighborhoodAttention.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        NeighborhoodAttention.__call__ = original  # type: ignore[method-assign]

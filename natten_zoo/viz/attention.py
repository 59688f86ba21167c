"""What a query of a neighborhood attention layer sees, and how it weighs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers import NeighborhoodAttention
from ..layers.padding import pad_to
from ..ops import Neighborhood

# Recording patches a class, so only one thread may record at a time.
_lock = Lock()


@dataclass(frozen=True)
class LayerView:
    """An attention layer together with what went into it.

    Attributes:
        name: The layer's path in the model, `levels.0.blocks.1.attn`.
        layer: The layer.
        input: `[1, *spatial, channels]`.
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

        Indices from `size` on are the zero padding of a map smaller than the window.
        """
        return [self.window_of(axis, position) for axis, position in enumerate(query)]

    def window_of(self, axis: int, position: int) -> np.ndarray:
        """[`window`][] on one axis."""
        return self.neighborhood.keys(axis, position, self._padded.shape[1 + axis])

    def weights(self, query: tuple[int, ...]) -> np.ndarray:
        r"""Attention weights of one query, $\mathrm{softmax}_j(s \, q \cdot k_j + b)$.

        Returns:
            `[heads, *keys]`, summing to 1 per head; keys as in [`window`][].
        """
        layer, keys = self.layer, self.window(query)
        q, k, _ = (np.array(x.astype(mx.float32)[0]) for x in layer.project_qkv(self._padded))
        k = np.repeat(k[np.ix_(*keys)], layer.num_heads // layer.num_kv_heads, axis=-2)
        logits = layer.scale * np.einsum("hd,...hd->h...", q[tuple(query)], k)
        if "rpb" in layer:
            hood = self.neighborhood
            steps = [
                (index - position) // dilation + kernel - 1
                for index, position, dilation, kernel in zip(
                    keys, query, hood.dilation, hood.kernel_size, strict=True
                )
            ]
            table = np.array(layer.rpb.astype(mx.float32))
            logits = logits + table[np.ix_(np.arange(layer.num_heads), *steps)]
        axes = tuple(range(1, logits.ndim))
        weights = np.exp(logits - logits.max(axis=axes, keepdims=True))
        return weights / weights.sum(axis=axes, keepdims=True)

    def weight_map(self, query: tuple[int, ...]) -> np.ndarray:
        """The mean weight over the heads on the whole map `[*spatial]`, 0 outside the window."""
        keys, weights = self.window(query), self.weights(query).mean(axis=0)
        size = [max(n, int(k.max()) + 1) for n, k in zip(self.size, keys, strict=True)]
        whole = np.zeros(size, np.float32)
        whole[np.ix_(*keys)] = weights
        return whole[tuple(slice(n) for n in self.size)]

    def gather(self, shares: np.ndarray) -> np.ndarray:
        r"""The shares of the queries handed to their keys, $A^\top s$, mean over the heads.

        That is the gradient of attention with respect to its values.
        """
        layer = self.layer
        query, key, value = layer.project_qkv(self._padded)
        missing = [(0, p - n) for p, n in zip(query.shape[1:-2], shares.shape, strict=True)]
        cotangent = mx.array(np.pad(shares, missing) / layer.num_heads)[None, ..., None, None]
        cotangent = mx.broadcast_to(cotangent, (*query.shape[:-1], 1)).astype(query.dtype)
        _, (handed,) = mx.vjp(
            lambda v: [layer.attend(query, key, v)], [mx.zeros_like(value[..., :1])], [cotangent]
        )
        handed = np.array(handed.astype(mx.float32)[0]).sum(axis=(-2, -1))
        return handed[tuple(slice(n) for n in shares.shape)]

    @property
    def neighborhood(self) -> Neighborhood:
        """Who sees whom in this input, with axes that a window spans counted."""
        hood: Neighborhood = self.layer.neighborhood
        return hood.on(self._padded.shape[1:-1])

    @property
    def _padded(self) -> mx.array:
        """The input as the attention sees it."""
        hood = self.layer.neighborhood
        return pad_to(self.input, hood.minimum_size) if self.layer.pad_small_inputs else self.input


def view_layers(model: nn.Module, inputs: mx.array) -> list[LayerView]:
    """Runs a model and returns its neighborhood attention layers in the order they ran.

    The model is called but, arrays being lazy, computes only what is looked at later.

    Args:
        model: Any model with layers of [`NeighborhoodAttention`][].
        inputs: A batch of one.

    Examples:
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


def by_level(views: Iterable[LayerView]) -> list[list[LayerView]]:
    """Groups layers that follow each other on maps of the same shape."""
    return [list(group) for _, group in groupby(views, lambda view: view.input.shape)]


def reach(level: Sequence[LayerView], query: tuple[int, ...]) -> np.ndarray:
    """How many of a level's layers, counted back from its last, a query needs to see each token.

    Windows are products of axes, so what several layers see together is one, too.

    Returns:
        `[*spatial]`: 0 at the query, -1 where no information comes from.
    """
    needed = np.full(level[-1].size, -1)
    seen = [{position} for position in query]
    needed[tuple(query)] = 0
    for layers, view in enumerate(reversed(level), start=1):
        seen = [
            {key for position in positions for key in view.window_of(axis, position).tolist()}
            for axis, positions in enumerate(seen)
        ]
        inside = [[key for key in keys if key < n] for keys, n in zip(seen, view.size, strict=True)]
        box = np.ix_(*inside)
        needed[box] = np.where(needed[box] < 0, layers, needed[box])
    return needed


def rollout(views: Sequence[LayerView], query: tuple[int, ...]) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema, https://arxiv.org/abs/2005.00928) from one token.

    Each layer passes on half of what a token holds and gathers the other half by its weights
    (mean over the heads); between levels a token stands for the tokens it was made of.

    Args:
        views: Layers in the order they ran, through several levels or one.
        query: A token of the last layer's map.

    Returns:
        `[*spatial]` of the first layer's map: what of the query comes from where. Sums to 1,
        less what came from padding.
    """
    shares: np.ndarray = np.zeros(views[-1].size, np.float32)
    shares[tuple(query)] = 1.0
    for view in reversed(views):
        shares = _spread(shares, view.size)
        shares = 0.5 * shares + 0.5 * view.gather(shares)
    return shares


def _spread(shares: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Divides the share of each token among the tokens of a larger map that it was made of."""
    for axis, length in enumerate(size):
        parent = np.arange(length) * shares.shape[axis] // length
        count = np.bincount(parent, minlength=shares.shape[axis])
        weights = (1 / count[parent]).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(shares.ndim)]
        shares = np.take(shares, parent, axis) * weights.reshape(shape)
    return shares


@contextmanager
def _recording() -> Iterator[list[tuple[Any, mx.array]]]:
    calls: list[tuple[Any, mx.array]] = []
    original = NeighborhoodAttention.__call__

    def call(layer: NeighborhoodAttention, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        calls.append((layer, x))
        return original(layer, x, *args, **kwargs)

    NeighborhoodAttention.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        NeighborhoodAttention.__call__ = original  # type: ignore[method-assign]

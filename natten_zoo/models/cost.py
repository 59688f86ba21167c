"""Counting parameters and multiply-adds without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..layers.convolution import Conv1d, Conv2d, Conv3d
from ..layers.norm import LayerNorm

# Of the parameters, what never learns: what a batch norm has seen, what a decoder's latents
# were like, random projections.
_FIXED = (
    *(".running_mean", ".running_var", "latents_mean", "latents_std"),
    *("time_emb.weight", "aug_emb.weight"),
)
# Counting patches classes, so only one thread may count at a time.
_lock = Lock()


@dataclass(frozen=True)
class Cost:
    """What a model weighs and works.

    Args:
        params: Parameters.
        macs: Multiply-adds, by the rules of `count_cost`.
    """

    params: int
    macs: int


def count_cost(model: nn.Module, *inputs: mx.array) -> Cost:
    """Parameters, and the multiply-adds of `model(*inputs)`.

    The model is called but, arrays being lazy, not evaluated. The rules are those behind the
    published figures (fvcore's): linear layers and convolutions on whatever they get, padding
    included; attention for the tokens that are kept; 4 per sample of deformable attention, for the
    pixels around it; 5 per element of a layer norm; nothing for activations, softmax and additions.
    Layers of other kinds say what a call costs beside the layers in them: `macs(output, *inputs)`,
    defined beside `__call__`.

    Args:
        model: Any module.
        inputs: Its inputs, a batch of 1 for the cost of one image.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import create_model
        >>> from natten_zoo.models.cost import count_cost
        >>> count_cost(create_model("nat_mini"), mx.zeros((1, 224, 224, 3)))
        Cost(params=19984174, macs=2711119872)
    """
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    counted = _COUNTED | {cls: vars(cls)["macs"] for cls in classes if "macs" in vars(cls)}
    with _lock, _recording(counted) as macs:
        model(*inputs)
    return Cost(count_parameters(model), sum(macs))


def count_parameters(model: nn.Module) -> int:
    """Parameters; statistics of data are none, nor are random projections."""
    values: Any = tree_flatten(model.parameters())
    return sum(value.size for name, value in values if not name.endswith(_FIXED))


def _linear(layer: Any, out: mx.array, *_: Any) -> int:
    return out.size * layer.weight.shape[-1]


def _full_attention(layer: Any, out: mx.array, _: mx.array, keys: mx.array, *__: Any) -> int:
    return 2 * out.size * keys.shape[1]


_COUNTED: dict[type, Callable[..., int]] = {
    nn.Linear: _linear,
    nn.Conv1d: Conv1d.macs,
    nn.Conv2d: Conv2d.macs,
    nn.Conv3d: Conv3d.macs,
    nn.LayerNorm: LayerNorm.macs,
    nn.MultiHeadAttention: _full_attention,
}


@contextmanager
def _recording(counted: Mapping[type, Callable[..., int]]) -> Iterator[list[int]]:
    macs: list[int] = []
    originals: dict[Any, Any] = {cls: cls.__call__ for cls in counted}
    try:
        for cls, original in originals.items():
            cls.__call__ = _counting(original, counted[cls], macs)
        yield macs
    finally:
        for cls, original in originals.items():
            cls.__call__ = original


def _counting(
    original: Callable[..., Any], cost: Callable[..., int], macs: list[int]
) -> Callable[..., Any]:
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(layer, *args, **kwargs)
        macs.append(cost(layer, out, *args))
        return out

    return call

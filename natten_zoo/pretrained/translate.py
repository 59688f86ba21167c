"""A checkpoint's weights in a model's own names and layouts, whoever wrote them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import mlx.core as mx
from mlx.utils import tree_flatten

from .protocol import Loadable
from .readers.errors import CheckpointError
from .readers.reader import Checkpoint

Layout = Literal["mlx", "torch"]
Weights = Mapping[str, mx.array]


def own_names(model: Loadable, checkpoint: Checkpoint) -> dict[str, mx.array]:
    """A checkpoint's weights in the names and layouts of a model.

    Names and layouts are two things: MLX saves a model under its own names, converters keep
    upstream's and turn the convolutions. So whose layouts these are is seen in their shapes, and
    the names are translated if that makes more of them the model's.

    Raises:
        CheckpointError: Its names are so unlike the model's that they cannot be translated.
    """
    weights = checkpoint.weights
    is_mlx = (layout_of(weights) or checkpoint.format) == "mlx"
    foreign: Weights = weights
    if is_mlx:
        foreign = {name: _torch_layout(name, value) for name, value in weights.items()}

    def renamed() -> dict[str, mx.array]:
        return dict(model.sanitize(foreign))

    def kept() -> dict[str, mx.array]:
        return {n: v if is_mlx else _mlx_layout(n, v) for n, v in weights.items()}

    ways = (kept, renamed) if is_mlx else (renamed, kept)
    parameters = dict(tree_flatten(model.parameters()))
    found: list[dict[str, mx.array]] = []
    for way in ways:
        try:
            found.append(way())
        except (LookupError, ValueError):  # not the names that the model translates
            continue
    best = max(found, key=lambda names: len(parameters.keys() & names.keys()))
    if len(found) < len(ways) and 2 * len(parameters.keys() & best.keys()) < len(parameters):
        names = ", ".join(repr(name) for name in list(weights)[:3])
        raise CheckpointError(
            checkpoint.path,
            f"its weights are not those of a {type(model).__name__}: few of its names are the "
            f"model's, or names that it translates (they are {names}, ...)",
        )
    return best


def layout_of(weights: Weights) -> Layout | None:
    """Whose layouts the weights of convolutions have; None if their shapes do not tell.

    Torch's are `[output, input, *kernel]`, MLX's `[output, *kernel, input]`, and the sides of a
    kernel are equal, or at least the last two. The majority decides: a 3x3 kernel over 3 channels
    says nothing.

    Examples:
        >>> layout_of({"conv.weight": mx.zeros((64, 3, 3, 32))})
        'mlx'
    """
    votes = Counter(map(_vote, weights.items()))
    if votes["mlx"] == votes["torch"]:
        return None
    return "mlx" if votes["mlx"] > votes["torch"] else "torch"


def _vote(item: tuple[str, mx.array]) -> Layout | None:
    name, value = item
    if value.ndim < 4 or not name.endswith(".weight"):
        return None
    torch, mlx = _likeness(value.shape[2:]), _likeness(value.shape[1:-1])
    return None if torch == mlx else "mlx" if mlx > torch else "torch"


def _likeness(sides: tuple[int, ...]) -> int:
    """How much the sides of an array look like a kernel's: 3x3x3 does, 2x4x4, and 48x3x3 less."""
    return int(sides[-1] == sides[-2]) + int(len(set(sides)) == 1)


def _torch_layout(name: str, value: mx.array) -> mx.array:
    return mx.moveaxis(value, -1, 1) if value.ndim >= 4 and name.endswith(".weight") else value


def _mlx_layout(name: str, value: mx.array) -> mx.array:
    return mx.moveaxis(value, 1, -1) if value.ndim >= 4 and name.endswith(".weight") else value

"""Loading weights strictly: every key that does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def load_strict(model: nn.Module, weights: Mapping[str, mx.array], source: str = "weights") -> None:
    """Replace all parameters of `model` by `weights`, or change nothing and say why.

    Args:
        model: The model.
        weights: One array per parameter, in the model's names and layouts.
        source: Where the weights are from, for the message.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; all of them are listed.
    """
    if problems := mismatches(model, weights):
        raise ValueError(
            f"[{type(model).__name__}] {source} must fit the model's parameters but "
            f"{len(problems)} of them do not:\n  " + "\n  ".join(problems) + way_out(problems)
        )
    model.load_weights(list(weights.items()), strict=True)


def way_out(problems: Sequence[str]) -> str:
    """What can be done where all that is wrong is that a checkpoint has more than a model."""
    unexpected = [line.partition(":")[0] for line in problems if ": unexpected" in line]
    if not unexpected or len(unexpected) < len(problems):
        return ""
    return f"\nEntries that are no weights can be left out: skip={unexpected[0]!r}, or --skip NAME"


def mismatches(model: nn.Module, weights: Mapping[str, mx.array]) -> list[str]:
    """One line for every missing, unexpected or mis-shaped key, with both shapes."""
    return differences(shapes_of(model), weights)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by name."""
    parameters = dict(tree_flatten(model.parameters()))
    return {name: value.shape for name, value in parameters.items()}


def differences(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, mx.array]
) -> list[str]:
    """The same for the shapes of a model's parameters."""
    given = {name: value.shape for name, value in weights.items()}
    lines = []
    for name in sorted(expected.keys() | given.keys()):
        if name not in given:
            lines.append(f"{name}: missing, the model has {expected[name]}")
        elif name not in expected:
            lines.append(f"{name}: unexpected, the file has {given[name]}")
        elif given[name] != expected[name]:
            lines.append(f"{name}: the model has {expected[name]}, the file {given[name]}")
    return lines

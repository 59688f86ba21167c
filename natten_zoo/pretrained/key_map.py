"""How a checkpoint's names become a model's, shown to who converts a file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import mlx.core as mx
import numpy as np

from .protocol import Loadable
from .readers import Checkpoint
from .translate import own_names


def key_map(model: Loadable, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """For every parameter of a model, the names in a checkpoint that it is made of.

    Found by following one small marked array per name through the translation, so it is what
    really happens and not a second list of names. It goes through twice, with other marks: where
    two names were multiplied, as a gate is with what it is a factor of, both can be told.
    """
    names = list(checkpoint.weights)
    count = len(names)
    # Of three rows, since some translations split one weight into queries, keys and values.
    first, second = (
        own_names(
            model,
            dataclasses.replace(
                checkpoint,
                weights={
                    name: mx.full([3] * checkpoint.weights[name].ndim, index)
                    for index, name in enumerate(names, start)
                },
            ),
        )
        for start in (0, count)
    )
    found = {}
    for own, value in first.items():
        pairs = np.stack([np.array(value).ravel(), np.array(second[own]).ravel()], axis=-1)
        marks = {mark for a, b in np.unique(pairs, axis=0) for mark in _factors(a, b, count)}
        found[own] = tuple(names[mark] for mark in sorted(marks))
    return found


def _factors(first: float, second: float, count: int) -> tuple[int, ...]:
    """The marks that a value was made of: `i`, then `i + count`; or a product of two such.

    Examples:
        >>> _factors(7, 107, count=100), _factors(3 * 7, 103 * 107, count=100)
        ((7,), (3, 7))
    """
    if second - first == count:
        return (int(first),)
    total = round((second - first) / count) - count  # of two numbers whose product is the first
    half = math.isqrt(max(total * total - 4 * int(first), 0))
    return (total - half) // 2, (total + half) // 2


def summary(mapping: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[str]:
    """The map with numbers collapsed, one line for each kind of parameter, then what is unused.

    Examples:
        >>> summary({"norm.0.w": ("n.0.w",), "norm.1.w": ("n.1.w",)}, ["n.0.w", "n.1.w", "x"])
        ['norm.*.w  x 2  from n.*.w', 'not used: x']
    """
    kinds: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for own, foreign in mapping.items():
        kind = _kind(own)
        kinds.setdefault(kind, set()).update(map(_kind, foreign))
        counts[kind] = counts.get(kind, 0) + 1
    width = max(map(len, kinds), default=0)
    lines = []
    for kind, origins in kinds.items():
        line = f"{kind:{width}}  x {counts[kind]}"
        lines.append(line if origins == {kind} else f"{line}  from {_joined(sorted(origins))}")
    used = {name for foreign in mapping.values() for name in foreign}
    unused = sorted({_kind(name) for name in names if name not in used})
    return lines + [f"not used: {', '.join(unused)}"] * bool(unused)


def _joined(names: list[str]) -> str:
    """`a.key.b` and `a.query.b` as `a.{key,query}.b`."""
    if len(names) < 2:
        return "".join(names)
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1:
        return ", ".join(names)
    columns = [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)]
    return ".".join(c[0] if len(c) == 1 else f"{{{','.join(c)}}}" for c in columns)


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)

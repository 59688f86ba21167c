"""Exported functions, read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ..files import sha256_of
from .graph import check_stream


@dataclass(frozen=True)
class Exported:
    """A function that was read from its file; call it as the model.

    Attributes:
        path: The file.
        facts: What stands beside it: classes, preprocessing, license, versions.
    """

    path: Path
    facts: dict[str, Any]

    @cached_property
    def function(self) -> Callable[..., tuple[mx.array, ...]]:
        """What MLX reads from the file: it takes the batches and sizes that were exported.

        Raises:
            RuntimeError: It is for Metal, and there is none here.
        """
        if self.facts["target"] == "metal" and not mx.metal.is_available():
            raise RuntimeError(f"[Exported] {self.path.name} is for Metal, which is not here.")
        return cast(Callable[..., tuple[mx.array, ...]], mx.import_function(str(self.path)))

    def __call__(self, *inputs: mx.array) -> tuple[mx.array, ...]:
        """The outputs, for any batch that the batches in the file add up to.

        Raises:
            ValueError: They do not, or there is no such size.
            RuntimeError: The function is for Metal, and there is none here.
        """
        parts, start = [], 0
        for n in split_batch(inputs[0].shape[0], self.facts["batches"]):
            parts.append(self.function(*(x[start : start + n] for x in inputs)))
            start += n
        if len(parts) == 1:
            return tuple(parts[0])
        return tuple(mx.concatenate(list(some)) for some in zip(*parts, strict=True))


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Reads a file of [`export_model`][natten_zoo.export.export_model], and what stands beside it.

    Raises:
        FileNotFoundError: There is no such file, or nothing beside it.
        ValueError: The file is not the one that the facts beside it are of.
        RuntimeError: Another thread used MLX first, and has the stream that the file names.
    """
    check_stream("load_exported")
    path = Path(path)
    facts = json.loads(sidecar(path).read_text(encoding="utf-8"))
    if sha256_of(path) != facts["sha256"]:
        raise ValueError(f"{path} is not the file that {sidecar(path).name} describes.")
    return Exported(path, facts)


def sidecar(path: Path) -> Path:
    """Where the facts of a file stand: `nat_mini.mlxfn` -> `nat_mini.json`."""
    return path.with_suffix(".json")


def split_batch(batch: int, known: Iterable[int]) -> list[int]:
    """The batches to call a function with, largest first.

    Raises:
        ValueError: The known ones do not add up to it.

    Examples:
        >>> split_batch(11, [1, 2, 4])
        [4, 4, 2, 1]
    """
    parts, left = [], batch
    for n in sorted(known, reverse=True):
        parts += [n] * (left // n)
        left %= n
    if left or not parts:
        raise ValueError(
            f"[Exported] a batch of {batch} is no sum of those that the file has: {list(known)}."
        )
    return parts

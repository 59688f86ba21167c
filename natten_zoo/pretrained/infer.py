"""Which registered model bare weights are of, with no configuration to tell."""

from __future__ import annotations

from functools import cache
from pathlib import PurePath
from urllib.parse import urlparse

import mlx.core as mx

from ..configs.record import Record
from .protocol import Loadable
from .readers.errors import CheckpointError
from .readers.reader import Checkpoint
from .registry import build_model, model_class, records
from .strict import differences, shapes_of, way_out
from .translate import own_names


def infer(checkpoint: Checkpoint, cls: type[Loadable] | None) -> Record:
    """Find the registered model that bare weights are of.

    Dilations are in no weight, so the shapes can leave several models, `nat_mini` and
    `dinat_mini` for one. Then the name that a training checkpoint carries decides, the file's
    name, or the class that was asked for.

    Raises:
        CheckpointError: No model fits, or several do.
    """
    differences = _differences(checkpoint, cls or Loadable)
    fitting = [record for record, lines in differences if not lines]
    if not fitting:
        record, lines = min(differences, key=lambda pair: len(pair[1]))
        more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise CheckpointError(
            checkpoint.path,
            f"its weights fit none of {len(differences)} known models. The nearest is "
            f"{record.name}, but for\n  " + "\n  ".join(lines[:5]) + more + way_out(lines),
        )
    for names in (_names_inside(checkpoint), _names_of_file(checkpoint), _names_of_class(cls)):
        if len(fitting) > 1:
            fitting = [record for record in fitting if record.name in names] or fitting
    if len(fitting) > 1:
        raise CheckpointError(
            checkpoint.path,
            f"its weights fit {', '.join(record.name for record in fitting)}, which differ in "
            f"what no weight tells (dilations). Say which: model={fitting[0].name!r}",
        )
    return with_head_of(fitting[0], checkpoint)


def with_head_of(record: Record, checkpoint: Checkpoint) -> Record:
    """The record with as many classes as the weights have, be the model named or found by them."""
    cls = model_class(record.architecture)
    if not cls.CLASSIFIERS:
        return record
    weights = own_names(build_model(record), checkpoint)
    heads = [weights[f"{n}.weight"] for n in cls.CLASSIFIERS if f"{n}.weight" in weights]
    return record.for_classes(heads[0].shape[0] - cls.EXTRA_OUTPUTS if heads else 0)


def _differences(checkpoint: Checkpoint, cls: type[Loadable]) -> list[tuple[Record, list[str]]]:
    """Every published model of a class, and where the weights differ from it but in the head."""
    translated: dict[str, dict[str, mx.array] | None] = {}
    result = []
    for record in filter(lambda record: record.has_weights, records().values()):
        architecture = model_class(record.architecture)
        if not issubclass(architecture, cls):
            continue
        if record.architecture not in translated:
            try:
                translated[record.architecture] = own_names(build_model(record), checkpoint)
            except CheckpointError:
                translated[record.architecture] = None
        weights = translated[record.architecture]
        if weights is not None:
            lines = differences(_shapes(record.name), weights)
            heads = tuple(f"{name}." for name in architecture.CLASSIFIERS)
            result.append((record, [line for line in lines if not line.startswith(heads)]))
    if not result:
        raise CheckpointError(checkpoint.path, "its weights' names are those of no known model")
    return result


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a registered model's parameters; to build all models takes a second."""
    return shapes_of(build_model(records()[name]))


def _names_inside(checkpoint: Checkpoint) -> list[str]:
    """The name that timm's training script writes into its checkpoints."""
    return [str(checkpoint.metadata.get("arch"))]


def _names_of_file(checkpoint: Checkpoint) -> list[str]:
    """The model whose published file has this name, else the longest name that is part of it."""
    stem = checkpoint.path.stem
    published = [r.name for r in records().values() if r.url and _stem(r.url) == stem]
    parts = sorted((name for name in records() if name in stem), key=len)
    # dinat_mini.pth has nat_mini in its name too.
    return published or parts[-1:]


def _stem(url: str) -> str:
    return PurePath(urlparse(url).path).stem


def _names_of_class(cls: type[Loadable] | None) -> list[str]:
    """Models of exactly the class that was asked for: a NAT rather than a DiNAT, which is one."""
    return [r.name for r in records().values() if cls and r.architecture == cls.__name__]

"""Names of models: what there is and what is known of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from ..configs import variants
from ..configs.record import Record
from .protocol import Loadable

# The classes that a record or a saved configuration may name as its architecture, by their names.
# natten_zoo.models, which is above this package, puts them here.
ARCHITECTURES: dict[str, type[Loadable]] = {}


@cache
def records() -> dict[str, Record]:
    """All records by name; don't change what it returns."""
    return {
        name: Record.from_dict(
            {
                "name": name,
                "architecture": variant["architecture"],
                "model": variant["model"],
                **variant["checkpoint"],
            }
        )
        for name, variant in variants().items()
    }


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of the variants that match a shell-style pattern, sorted.

    Args:
        pattern: `*` and `?` are wildcards.
        pretrained: Only variants whose weights are published.

    Examples:
        >>> from natten_zoo import list_models
        >>> list_models("nat_[mt]*")
        ['nat_mini', 'nat_tiny']
    """
    return sorted(
        name
        for name, record in records().items()
        if fnmatchcase(name, pattern) and (record.has_weights or not pretrained)
    )


def get_record(name: str) -> Record:
    """The record of a variant, given its name or its Hugging Face repository.

    Raises:
        ValueError: There is no such variant; the message lists the nearest names.
    """
    for record in records().values():
        if name in (record.name, record.hub):
            return record
    nearest = difflib.get_close_matches(name, records(), n=5, cutoff=0.4)
    hint = f"the nearest names are {', '.join(nearest)}" if nearest else "see list_models()"
    raise ValueError(f"[get_record] 'name' must be a known model but got {name!r}; {hint}.")


def model_class(architecture: str) -> type[Loadable]:
    """The model class that a record or a saved configuration names.

    Raises:
        ValueError: There is no such architecture.
        RuntimeError: Nobody has imported the models.
    """
    if not ARCHITECTURES:
        raise RuntimeError(
            f"[model_class] 'architecture' must be known but got {architecture!r} before any was: "
            "import natten_zoo.models, which has them all."
        )
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"[model_class] 'architecture' must be one of {', '.join(ARCHITECTURES)} but got "
            f"{architecture!r}."
        )
    return ARCHITECTURES[architecture]


def arguments(record: Record) -> dict[str, Any]:
    """The arguments of the configuration of a record's model."""
    has_classes = bool(model_class(record.architecture).CLASSIFIERS)
    return (
        {"num_classes": record.num_classes} | dict(record.model)
        if has_classes
        else dict(record.model)
    )


def build_model(record: Record, overrides: Mapping[str, Any] | None = None) -> Loadable:
    """A freshly initialized model of a record, some arguments of its configuration overridden.

    Its `record` says what stays true with the overrides; accuracies are those of the weights that
    it is given next.

    Raises:
        ValueError: An override is not an argument of the architecture.
    """
    cls = model_class(record.architecture)
    own = arguments(record)
    config = cls.Config.from_dict({**own, **(overrides or {})})
    before = vars(cls.Config.from_dict(own))
    model = cls(config)
    changed = {name: value for name, value in vars(config).items() if value != before[name]}
    model.record = record.for_config(changed)
    return model

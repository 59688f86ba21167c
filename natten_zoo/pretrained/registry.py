"""Names of models: what there is, what is known of it, and how to get one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs import variants
from ..configs.record import Record

if TYPE_CHECKING:
    from ..models import Model


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
        pattern: ``*`` and ``?`` are wildcards.
        pretrained: Only variants whose weights are published.

    Example:
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


def model_class(architecture: str) -> type[Model]:
    """The model class that a record or a saved configuration names.

    Raises:
        ValueError: There is no such architecture.
    """
    from ..models import ARCHITECTURES

    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"[model_class] 'architecture' must be one of {', '.join(ARCHITECTURES)} but got "
            f"{architecture!r}."
        )
    return ARCHITECTURES[architecture]


def task_of(record: Record) -> str:
    """What a model is for, as Hugging Face calls it."""
    return model_class(record.architecture).TASK


def build_model(record: Record, overrides: Mapping[str, Any] | None = None) -> Model:
    """A freshly initialized model of a record, some arguments of its configuration overridden.

    Its ``record`` says what stays true with the overrides; accuracies are those of the weights that
    it is given next.

    Raises:
        ValueError: An override is not an argument of the architecture.
    """
    cls = model_class(record.architecture)
    own = {"num_classes": record.num_classes, **record.model}
    config = cls.Config.from_dict({**own, **(overrides or {})})
    before = vars(cls.Config.from_dict(own))
    model = cls(config)
    changed = {name: value for name, value in vars(config).items() if value != before[name]}
    model.record = record.for_config(changed)
    return model


def create_model(
    name: str,
    pretrained: bool | str | Path = False,
    *,
    hub: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Model:
    """Build a published variant, with random or with pretrained weights.

    Args:
        name: The variant, one of :func:`list_models`, or its Hugging Face repository.
        pretrained: True for the variant's published weights, or a path, a Hugging Face
            repository or another name to take weights from.
        hub: Keyword arguments of the download: ``revision``, ``cache_dir``,
            ``local_files_only``, ``token``.
        overrides: Arguments of the architecture's configuration to change, such as
            ``num_classes``, ``in_chans``, ``kernel_size``, ``dilations``, ``drop_path_rate``.
            Pretrained weights are fitted to them (:func:`natten_zoo.pretrained.adapt.adapt`).

    Returns:
        The model; in evaluation mode if its weights are pretrained. Its ``record`` has those of
        the published figures that are true of it: no accuracy of random weights, and none at all of
        another architecture.

    Raises:
        ValueError: The name or an override is unknown, or weights do not fit.

    Example:
        >>> from natten_zoo import create_model
        >>> create_model("nat_mini", num_classes=10).config.num_classes
        10
    """
    record = get_record(name)
    model = build_model(record, overrides)
    if pretrained is False:
        model.record = model.record and model.record.untrained()
        return model
    from .load import load_weights

    source = record.name if pretrained is True else pretrained
    load_weights(model, source, changed=overrides.keys(), **(hub or {}))
    model.eval()
    return model

"""Which model a checkpoint is of: told by its configuration, its name, or its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..configs.record import Record
from ..data.preprocess import Preprocess
from .infer import infer
from .protocol import Loadable
from .readers.errors import CheckpointError
from .readers.reader import Checkpoint
from .registry import arguments, get_record, model_class

# `model_type` of a Hugging Face config.json, and our architecture.
HUGGING_FACE = {
    "nat": "NAT",
    "dinat": "DiNAT",
    "oneformer": "OneFormer",
    "mask2former": "Mask2Former",
}


@dataclasses.dataclass(frozen=True)
class Description:
    """A model to build.

    Attributes:
        architecture: Name of the model class.
        config: Arguments of its configuration.
        record: What else is known of the checkpoint, if anything.
    """

    architecture: str
    config: dict[str, Any]
    record: Record | None


def describe(
    checkpoint: Checkpoint, cls: type[Loadable] | None, variant: str | None, record: Record | None
) -> Description:
    """Tell which model a checkpoint is of.

    Args:
        checkpoint: What was read.
        cls: The class that the caller wants, or None.
        variant: The registered model that the caller says it is.
        record: The registered model by whose name it was found.

    Raises:
        CheckpointError: Its configuration is malformed, or nothing tells what it is.
    """
    config = checkpoint.config or {}
    if variant is not None:
        return _registered(get_record(variant))
    if "architecture" in config:
        return _saved(checkpoint, config)
    if record is not None:
        return _registered(record)
    if "model_type" in config:
        return _hugging_face(checkpoint, config)
    return _registered(infer(checkpoint, cls))


def build(
    checkpoint: Checkpoint, description: Description, num_classes: int | None = None
) -> Loadable:
    """The described model, freshly initialized.

    Args:
        checkpoint: Where the description is from.
        description: The model.
        num_classes: Another size of its classifier.

    Raises:
        CheckpointError: No model can be built from its configuration.
    """
    cls, values = model_class(description.architecture), dict(description.config)
    if num_classes is not None:
        if type(num_classes) is not int or num_classes < 0:
            raise ValueError(
                f"[from_pretrained] 'num_classes' must be an int >= 0 but got {num_classes!r}."
            )
        if not cls.CLASSIFIERS:
            raise ValueError(
                "[from_pretrained] 'num_classes' must be left out, as a "
                f"{cls.__name__} has no classifier, but got {num_classes}."
            )
        values["num_classes"] = num_classes
    try:
        model = cls(cls.Config.from_dict(values))
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise CheckpointError(checkpoint.path, f"its config.json is wrong: {error}") from error
    model.record = description.record
    if model.record is not None and num_classes is not None:
        model.record = model.record.for_classes(num_classes)
    return model


def _registered(record: Record) -> Description:
    return Description(record.architecture, arguments(record), record)


def _saved(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """Read the `config.json` that `save_pretrained` wrote."""
    try:
        architecture, facts = config["architecture"], config.get("record")
        cls, values = model_class(architecture), dict(config["config"])
        if not cls.CLASSIFIERS:
            values.pop("num_classes", None)  # which those of early versions had all the same
        cls.Config.from_dict(values)
        record = None
        if facts is not None:
            record = Record.from_dict({**facts, "architecture": architecture, "model": values})
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(checkpoint.path, f"its config.json is wrong: {error}") from error
    return Description(architecture, values, record)


def _hugging_face(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """Translate the configuration of a transformers model."""
    if config["model_type"] not in HUGGING_FACE:
        raise CheckpointError(
            checkpoint.path,
            f"it is a {config['model_type']!r} model; those read here are {list(HUGGING_FACE)}",
        )
    architecture = HUGGING_FACE[config["model_type"]]
    try:
        values = model_class(architecture).Config.from_huggingface(config).to_dict()  # type: ignore[attr-defined]
        labels = config.get("id2label") or {}
        classes = tuple(str(labels[str(index)]) for index in range(len(labels)))
        record = Record.from_dict(
            {
                "name": checkpoint.path.name,
                "architecture": architecture,
                "model": values,
                "license": "",
                "num_classes": values["num_classes"],
                "classes": classes,
                **_preprocessing(checkpoint),
            }
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(checkpoint.path, f"its config.json is wrong: {error!r}") from error
    return Description(architecture, values, record)


def _preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.preprocessor is None:
        return {}
    facts = dataclasses.asdict(Preprocess.from_config(checkpoint.preprocessor))
    return {"input_size": facts.pop("size"), **facts}

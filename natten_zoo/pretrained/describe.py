"""Which model a checkpoint is of: told by its configuration, its name, or its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..configs.record import Record
from ..data.preprocess import Preprocess
from .huggingface import label_names
from .infer import infer, with_head_of
from .kdiffusion import hdit_arguments, kdiffusion_config
from .protocol import Loadable
from .readers.errors import CheckpointError
from .readers.reader import CONFIG, PREPROCESSOR, Checkpoint
from .registry import arguments, get_record, model_class
from .timm_config import is_timm, timm_record

# `model_type` of a Hugging Face config.json, and our architecture.
HUGGING_FACE = {
    "nat": "NAT",
    "dinat": "DiNAT",
    "oneformer": "OneFormer",
    "mask2former": "Mask2Former",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
}
# `_class_name` of a diffusers config.json.
DIFFUSERS = {"LTX2VideoDiffusionDecoderModel": "LTXDecoder"}
# Fields of a record that tell how images are prepared.
_PREPARATION = ("input_size", "crop_pct", "crop_mode", "longest", "interpolation", "mean", "std")


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
        return _registered(named(get_record(variant), checkpoint))
    if record is not None and "config" not in config:
        return _registered(record)
    if not config.keys().isdisjoint(("architecture", "model_type", "_class_name")):
        return _configured(checkpoint, config)
    if (found := kdiffusion_config(checkpoint)) is not None:
        return _kdiffusion(checkpoint, found)
    return _registered(_prepared(infer(checkpoint, cls), checkpoint))


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
        config = cls.Config.from_dict(values)
        _check_depth(vars(config), checkpoint)
        model = cls(config)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _wrong(checkpoint, CONFIG, error) from error
    model.record = description.record
    if model.record is not None and num_classes is not None:
        model.record = model.record.for_classes(num_classes)
    return model


def _registered(record: Record) -> Description:
    return Description(record.architecture, arguments(record), record)


def named(record: Record, checkpoint: Checkpoint) -> Record:
    """The record of a model that the caller named: what the checkpoint tells of itself stays true.

    Its classifier has the size of the weights'; the names of classes and the preparation of images
    are those of its configuration, where it has one.

    Raises:
        CheckpointError: That is malformed.
    """
    record = with_head_of(record, checkpoint)
    config = checkpoint.config or {}
    if "architecture" in config or "model_type" in config:
        own = _configured(checkpoint, config).record
        if own is not None and own.num_classes == record.num_classes and own.classes:
            record = dataclasses.replace(record, classes=own.classes)
        if own is not None and len(own.mean) == len(record.mean):
            return dataclasses.replace(
                record, **{name: getattr(own, name) for name in _PREPARATION}
            )
    return _prepared(record, checkpoint)


def _configured(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """Read a `config.json`: that of `save_pretrained`, of transformers, diffusers or timm."""
    try:
        if "_class_name" in config and "architecture" not in config:
            return _diffusers(checkpoint, config)
        if "model_type" in config and "architecture" not in config:
            return _hugging_face(checkpoint, config)
        if is_timm(config):
            return _registered(_usable(timm_record(config)))
        return _saved(config)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _wrong(checkpoint, CONFIG, error) from error


def _saved(config: Mapping[str, Any]) -> Description:
    """The `config.json` that `save_pretrained` wrote."""
    architecture, values, facts = (
        config.get(name) for name in ("architecture", "config", "record")
    )
    if not isinstance(architecture, str):
        raise ValueError(f"'architecture' must be a name but got {architecture!r}")
    if not isinstance(values, dict):
        raise ValueError(f"'config' must be the model's arguments but got {values!r}")
    cls, values = model_class(architecture), dict(values)
    if not cls.CLASSIFIERS:
        values.pop("num_classes", None)  # which those of early versions had all the same
    cls.Config.from_dict(values)
    if facts is None:
        return Description(architecture, values, None)
    if not isinstance(facts, dict):
        raise ValueError(f"'record' must be facts by name but got {facts!r}")
    record = Record.from_dict({**facts, "architecture": architecture, "model": values})
    return Description(architecture, values, _usable(record))


def _hugging_face(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """The configuration of a transformers model."""
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in HUGGING_FACE:
        raise CheckpointError(
            checkpoint.path, f"it is a {kind!r} model; those read here are {list(HUGGING_FACE)}"
        )
    architecture = HUGGING_FACE[kind]
    values = model_class(architecture).Config.from_huggingface(config).to_dict()  # type: ignore[attr-defined]
    headless = not any(name.startswith(("classifier.", "head.")) for name in checkpoint.weights)
    if kind in ("nat", "dinat") and headless:
        values["num_classes"] = 0
    record = Record.from_dict(
        {
            "name": checkpoint.path.name,
            "architecture": architecture,
            "model": values,
            "license": "",
            "num_classes": (classes := values.get("num_classes", 0)),
            "classes": (label_names(config) or "") if classes else "",
            **_preprocessing(checkpoint),
        }
    )
    return Description(architecture, values, _usable(record))


def _diffusers(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """The configuration of a diffusers model."""
    kind = config["_class_name"]
    if not isinstance(kind, str) or kind not in DIFFUSERS:
        raise CheckpointError(
            checkpoint.path, f"it is a {kind!r}; those of diffusers read here are {list(DIFFUSERS)}"
        )
    architecture = DIFFUSERS[kind]
    values = model_class(architecture).Config.from_diffusers(config).to_dict()  # type: ignore[attr-defined]
    return Description(architecture, values, None)


def _kdiffusion(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Description:
    """The configuration that k-diffusion trained a model with."""
    try:
        values = model_class("HDiT").Config.from_dict(hdit_arguments(config)).to_dict()
        height, width = config["model"]["input_size"]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise _wrong(checkpoint, "k-diffusion configuration", error) from error
    channels = values["in_chans"]
    record = Record.from_dict(
        {
            "name": checkpoint.path.name,
            "architecture": "HDiT",
            "model": values,
            "license": "",
            "input_size": height if height == width else 0,
            "mean": [0.5] * channels,
            "std": [0.5] * channels,
            "num_classes": 0,
            "classes": "",
        }
    )
    return Description("HDiT", values, record)


def _preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.preprocessor is None:
        return {}
    try:
        facts = dataclasses.asdict(Preprocess.from_config(checkpoint.preprocessor))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _wrong(checkpoint, PREPROCESSOR, error) from error
    return {"input_size": facts.pop("size"), **facts}


def _prepared(record: Record, checkpoint: Checkpoint) -> Record:
    facts = _preprocessing(checkpoint)
    return dataclasses.replace(record, **facts) if facts else record


def _usable(record: Record) -> Record:
    """The record, if images can be prepared as it says.

    Raises:
        ValueError: They cannot; the message names what is wrong.
    """
    if record.input_size and record.crop_mode != "volume":
        Preprocess.from_record(record)
    return record


def _check_depth(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse to build more layers than there are weights: a few bytes can ask for millions."""
    depth = config.get("depths", config.get("depth", 0))
    layers = sum(depth) if isinstance(depth, tuple) else depth
    if layers > len(checkpoint.weights):
        raise ValueError(f"it describes {layers} layers but there are {len(checkpoint.weights)} "
                         "weights")  # fmt: skip


def _wrong(checkpoint: Checkpoint, file: str, error: Exception) -> CheckpointError:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return CheckpointError(checkpoint.path, f"its {file} is wrong: {what}")

"""The `config.json` that timm writes for models that are registered with it, as upstream's are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..configs.record import Record
from .registry import get_record, model_class, records

# In `pretrained_cfg`, or in older files beside the architecture.
_PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is timm's."""
    name = config.get("architecture")
    known = isinstance(name, str) and name.partition(".")[0] in records()
    return "pretrained_cfg" in config or (known and "config" not in config)


def timm_record(config: Mapping[str, Any]) -> Record:
    """Translate a configuration: the registered model, with what the file says of it.

    Raises:
        ValueError: It asks for what is not computed here; the message names the key.
    """
    name = config.get("architecture")
    if not isinstance(name, str):
        raise _wrong("architecture", "the name of a model", name)
    record = get_record(name.partition(".")[0])
    if config.get("global_pool", "avg") != "avg":
        raise _wrong("global_pool", "'avg'", config["global_pool"])
    values = dict(record.model)
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise _wrong("model_args", "arguments by name", arguments)
    known = vars(model_class(record.architecture).Config.from_dict(values))
    for key, value in arguments.items():
        if key not in known:
            raise _wrong(f"model_args.{key}", f"one of {', '.join(known)}", value)
        values[key] = value
    own = config.get("pretrained_cfg")
    own = config if own is None else own
    if not isinstance(own, Mapping):
        raise _wrong("pretrained_cfg", "values by name", own)
    classes = values.pop("num_classes", config.get("num_classes", own.get("num_classes")))
    classes = record.num_classes if classes is None else classes
    names = config.get("label_names", own.get("label_names", own.get("labels")))
    if names is not None and (not isinstance(names, list) or len(names) != classes):
        raise _wrong("label_names", f"{classes} names", names)
    facts = {
        **{key: getattr(record, key) for key in ("name", "architecture", "license", "source")},
        **{key: getattr(record, key) for key in _PREPROCESSING},
        "model": {**values, "num_classes": classes},
        "num_classes": classes,
        "classes": tuple(map(str, names)) if names else "",
    }
    if names is None and classes == record.num_classes and not arguments:
        facts["classes"] = record.classes
    return Record.from_dict({**facts, **_preprocessing(own, values.get("in_chans", 3))})


def _preprocessing(own: Mapping[str, Any], channels: int) -> dict[str, Any]:
    facts = {key: own[key] for key in _PREPROCESSING if own.get(key) is not None}
    size = facts.pop("input_size", None)
    if size is not None:
        square = isinstance(size, (list, tuple)) and len(size) == 3 and size[1] == size[2]
        if not square or size[0] != channels:
            raise _wrong("input_size", f"[{channels}, N, N]", size)
        facts["input_size"] = size[1]
    if facts.get("crop_mode") == "squash" and facts.get("crop_pct", 1) != 1:
        # There it squashes to a larger square, of which it takes the center.
        raise _wrong("crop_pct", "1 with 'crop_mode' squash", facts["crop_pct"])
    if facts.get("crop_mode", "center") not in ("center", "squash"):
        raise _wrong("crop_mode", "'center' or 'squash'", facts["crop_mode"])
    return {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"'{name}' must be {wanted} but got {repr(value)[:100]}")

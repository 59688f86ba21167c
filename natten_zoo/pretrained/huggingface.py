"""The `config.json` of transformers' NAT and DiNAT, as arguments of ours.

Every key that changes what those models compute is computed here, too, or refused by its name;
a key that is missing has the value that transformers gives it. Others change nothing there either.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..layers.transformer_layer import EPS

_DEFAULTS = {
    "num_channels": 3,
    "embed_dim": 64,
    "depths": [3, 4, 6, 5],
    "num_heads": [2, 4, 8, 16],
    "kernel_size": 7,
    "mlp_ratio": 3.0,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.1,
    "layer_scale_init_value": 0.0,
}
_DINAT_DILATIONS = [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]
# What is computed in one way only: the values that mean it. None stands for a key that is missing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python", None),  # both are the exact one
    "patch_size": (4, None),
    "layer_norm_eps": (EPS, None),
    "pruned_heads": ({}, None),
    "auto_map": ({}, None),  # code of its own
    "quantization_config": ({}, None),
}
_RATES = {
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
}


def nat_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration of `model_type` `nat` or `dinat`.

    Returns:
        Arguments of [`NATConfig`][natten_zoo.models.NATConfig].

    Raises:
        ValueError: A value is of another type, or asks for what is not computed here; the message
            names the key.
    """
    for name, allowed in _ONLY.items():
        value = config.get(name)
        if isinstance(value, bool) or value not in allowed:
            wanted = " or ".join(map(repr, filter(None, allowed))) or "missing"
            raise _wrong(name, wanted, value)
    values = {**_DEFAULTS, **config}
    if not isinstance(values["qkv_bias"], bool):
        raise _wrong("qkv_bias", "true or false", values["qkv_bias"])
    layer_scale = _number(values, "layer_scale_init_value")
    names = ("embed_dim", "depths", "num_heads", "mlp_ratio", "kernel_size", "qkv_bias")
    rates = {ours: _number(values, theirs, 1) for ours, theirs in _RATES.items()}
    return {
        **{name: values[name] for name in names},
        **rates,
        "dilations": _dilations(values),
        "in_chans": values["num_channels"],
        "num_classes": len(label_names(config) or ()) or config.get("num_labels", 1000),
        "layer_scale": layer_scale if layer_scale > 0 else None,
    }


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes, in their order; None if there are none.

    Raises:
        ValueError: They are not numbered from 0, or not as many as there are classes.
    """
    labels = config.get("id2label")
    if labels is None or labels == {}:
        return None
    if not isinstance(labels, Mapping) or set(labels) != set(map(str, range(len(labels)))):
        raise _wrong("id2label", 'names by number, "0" and on', labels)
    if config.get("num_labels", len(labels)) != len(labels):
        raise _wrong("num_labels", f"the number of names in 'id2label', {len(labels)},",
                     config["num_labels"])  # fmt: skip
    return tuple(str(labels[str(index)]) for index in range(len(labels)))


def _dilations(values: Mapping[str, Any]) -> Any:
    dilations = values.get("dilations")
    if values.get("model_type", "nat") == "dinat":
        return _DINAT_DILATIONS if dilations is None else dilations
    # A `nat` has none, and transformers would not look at them.
    rows = dilations if isinstance(dilations, list) else []
    ones = all(isinstance(row, list) and all(d == 1 for d in row) for row in rows)
    if dilations is not None and not (rows and ones):
        raise _wrong("dilations", "of a 'dinat': a 'nat' has none,", dilations)
    return None


def _number(values: Mapping[str, Any], name: str, below: float | None = None) -> float:
    value = values[name]
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not value == value or (below is not None and not 0 <= value < below):
        raise _wrong(name, f"a number in [0, {below})" if below else "a number", value)
    return float(value)


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"'{name}' must be {wanted} but got {repr(value)[:100]}")

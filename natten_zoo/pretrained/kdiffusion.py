"""k-diffusion's configurations, wherever they lie: beside the weights or with them in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .readers.budget import parse_json
from .readers.reader import Checkpoint


def kdiffusion_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The configuration of a model that k-diffusion trained, or None.

    Its training checkpoints have it under `config`, the files that it makes of them for inference
    as JSON in their metadata, and a folder may have it as `config.json`.

    Raises:
        CheckpointError: It is no JSON.
    """
    for found in (checkpoint.config, checkpoint.metadata.get("config")):
        config: Any = found
        if isinstance(found, str):
            config = parse_json(checkpoint.path, found.encode(), len(found))
        model = config.get("model") if isinstance(config, Mapping) else None
        if isinstance(model, Mapping) and "type" in model:
            return config  # type: ignore[no-any-return]
    return None


def hdit_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an HDiT's configuration that a configuration of k-diffusion amounts to.

    Raises:
        ValueError: It is that of another kind of model.
        LookupError: Something is missing.
    """
    model, data = config["model"], config.get("dataset", {})
    if model["type"] != "image_transformer_v2" or model.get("has_variance"):
        raise ValueError(
            "'model' must be an image_transformer_v2 without variance but is a "
            f"{str(model['type'])[:100]!r}"
        )
    last = len(model["widths"]) - 1
    specs = model.get("self_attns") or [
        *({"type": "neighborhood"} for _ in range(last)),
        {"type": "global"},
    ]
    labels = data.get("num_classes", 0)
    return {
        "widths": model["widths"],
        "depths": model["depths"],
        "attentions": [spec["type"] for spec in specs],
        "head_dims": [spec.get("d_head", 64) for spec in specs],
        "kernel_sizes": [spec.get("kernel_size", spec.get("window_size", 7)) for spec in specs],
        "hidden_dims": model.get("d_ffs"),
        "patch": model["patch_size"],
        "in_chans": model["input_channels"],
        "mapping_depth": model.get("mapping_depth", 2),
        "mapping_dim": model.get("mapping_width", 256),
        "mapping_hidden_dim": model.get("mapping_d_ff"),
        # One more stands for no label.
        "num_labels": labels + 1 if labels else 0,
        "cond_dim": model.get("mapping_cond_dim", 0),
        "drop_rate": model.get("dropout_rate") or 0.0,
        "mapping_drop_rate": model.get("mapping_dropout_rate", 0.0),
        "sigma_data": model.get("sigma_data", 1.0),
        "sigma_min": model["sigma_min"],
        "sigma_max": model["sigma_max"],
    }

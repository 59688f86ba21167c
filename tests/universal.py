"""The tiny OneFormer and Mask2Former whose outputs the published code computed."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from natten_zoo.models import Mask2Former, OneFormer, create_model, get_record
from natten_zoo.pretrained.strict import load_strict

DATA = Path(__file__).parent / "fixtures/universal"
CLASSES = {"oneformer": OneFormer, "mask2former": Mask2Former}


class Given:
    """A tiny model with everything that the published code computed of it.

    Args:
        name: `"oneformer"` or `"mask2former"`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.cls = name, CLASSES[name]
        with np.load(DATA / f"{name}_given.npz") as file:
            self.arrays: dict[str, np.ndarray] = dict(file)
        self.hub_config: dict[str, Any] = json.loads(str(self.arrays["meta"]))["config"]
        self.weights = {
            key.removeprefix("param::"): value
            for key, value in self.arrays.items()
            if key.startswith("param::")
        }
        self.model = self.cls(self.cls.Config.from_huggingface(self.hub_config)).eval()
        foreign = {key: mx.array(value) for key, value in self.weights.items()}
        load_strict(self.model, self.model.sanitize(foreign))

    @property
    def image(self) -> mx.array:
        """`[1, 128, 160, 3]`."""
        return mx.array(self.arrays["pixel_values"].transpose(0, 2, 3, 1))

    def error(self, ours: mx.array, key: str, *, chosen: Any = ...) -> float:
        """Largest difference from an array of the published code, relative to its scale.

        Our maps are channels last, theirs channels first.
        """
        theirs, values = self.arrays[key], np.asarray(ours)
        if values.ndim == 4 and values.shape[1:3] == theirs.shape[-2:]:
            values = values.transpose(0, 3, 1, 2)
        values = values[chosen].reshape(theirs.shape)
        return float(np.abs(values - theirs).max() / np.abs(theirs).max())


@cache
def given(name: str) -> Given:
    """The model of a name; loaded once."""
    return Given(name)


def read_json(name: str) -> Any:
    """A compressed JSON file of the fixtures."""
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


def upstream_names(name: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights in Hugging Face's names as the authors' file has them, in detectron2's names."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    result: dict[str, np.ndarray] = {}
    keymap = read_json("keymap_detectron2.json.gz")[name]
    for theirs, upstream in keymap.items():
        if theirs not in weights:
            continue
        if isinstance(upstream, str):
            result[upstream] = weights[theirs]
        else:
            parts.setdefault(upstream[0], {})[upstream[1]] = weights[theirs]
    for key, rows in parts.items():
        result[key] = np.concatenate([rows[part] for part in "qkv"])
    return result


def hub_shapes(name: str) -> dict[str, list[int]]:
    """Names and shapes of a variant's file, in Hugging Face's names."""
    record, config = get_record(name), create_model(name).config
    shapes: dict[str, list[int]] = read_json(
        f"keys_{record.architecture.lower()}_huggingface.json.gz"
    )
    for key, shape in shapes.items():
        if "class_embed" in key or "class_predictor" in key or key == "criterion.empty_weight":
            shape[0] = record.num_classes + 1
        elif "queries_" in key:
            shape[0] = config.num_queries
        elif key.endswith(".rpb"):
            shape[1:] = [2 * config.backbone.kernel_size - 1] * 2
    return shapes


def empty_arrays(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Zeros that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}

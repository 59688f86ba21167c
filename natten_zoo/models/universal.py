"""What Mask2Former and OneFormer share: a body, a pixel decoder, queries that are masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from .base import Classifier, Config
from .nat import NAT, NATConfig
from .universal_names import own_weights
from .universal_pixels import GROUPS, PixelDecoder
from .universal_queries import Masks, QueryDecoder, query_classifier

TASKS = ("panoptic", "instance", "semantic")


@dataclass(frozen=True)
class UniversalConfig(Config):
    """Configuration of a Mask2Former or a OneFormer.

    Args:
        backbone: Configuration of its body, a NAT or DiNAT of four levels, or the arguments of one.
            Its `num_classes` is without effect.
        channels: Channels of tokens and queries.
        mask_channels: Channels of the mask features.
        num_heads: Heads of every attention but the body's.
        pixel_depth: Layers of the pixel decoder.
        pixel_hidden: Width of their feed-forward parts.
        depth: Layers of the query decoder.
        hidden: Width of their feed-forward parts.
        num_queries: Masks that are predicted.
        num_classes: Classes, "nothing" not counted.
    """

    backbone: Any
    channels: int = 256
    mask_channels: int = 256
    num_heads: int = 8
    pixel_depth: int = 6
    pixel_hidden: int = 1024
    depth: int = 9
    hidden: int = 2048
    num_queries: int = 100
    num_classes: int = 150

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"[{type(self).__name__}]"
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", NATConfig.from_dict(self.backbone))
        if not isinstance(self.backbone, NATConfig) or len(self.backbone.depths) != 4:
            raise ValueError(
                f"{name} 'backbone' must be a NATConfig of four levels, or its arguments, but got "
                f"{self.backbone!r}."
            )
        object.__setattr__(self, "backbone", dataclasses.replace(self.backbone, num_classes=0))
        for argument in ("num_heads", "pixel_depth", "pixel_hidden", "hidden", "num_queries"):
            if (value := getattr(self, argument)) < 1:
                raise ValueError(f"{name} '{argument}' must be positive but got {value!r}.")
        if self.channels % GROUPS or self.channels % self.num_heads:
            raise ValueError(
                f"{name} 'channels' must be a multiple of {GROUPS}, the groups of the norms, and "
                f"of 'num_heads', {self.num_heads}, but got {self.channels}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Build a configuration from plain data; names that are not its own go to the body.

        Raises:
            ValueError: A name is not the body's either, or one is missing.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        changes = {name: value for name, value in values.items() if name not in names}
        if changes and isinstance(own.get("backbone"), Mapping):
            own["backbone"] = {**own["backbone"], **changes}
            changes = {}
        return super().from_dict({**own, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, ready for JSON."""
        return {**super().to_dict(), "backbone": self.backbone.to_dict()}

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.backbone.in_chans


class Universal(Classifier):
    """Panoptic, instance and semantic segmentation by queries that are a class and a mask each.

    Subclasses say what the queries are at the start. Segments of an image are made with
    [`find_segments`][natten_zoo.tasks.universal.find_segments].

    Attributes:
        KEEP: What the score of a query must exceed to be a segment, in upstream's code.
    """

    TASK = "universal-segmentation"
    CLASSIFIERS = ("decoder.head.class_embed",)
    EXTRA_OUTPUTS = 1  # "nothing"
    KEEP: ClassVar[float]

    def __init__(self, config: UniversalConfig) -> None:
        super().__init__(config)
        self.backbone = NAT(config.backbone).as_backbone(norms=True)
        dims = [info.channels for info in self.backbone.feature_info]
        self.pixel_decoder = PixelDecoder(
            dims,
            config.channels,
            config.mask_channels,
            config.num_heads,
            config.pixel_depth,
            config.pixel_hidden,
        )
        self.decoder = QueryDecoder(
            config.channels,
            config.mask_channels,
            config.num_heads,
            config.depth,
            config.hidden,
            config.num_queries,
            config.num_classes,
        )

    @property
    def num_features(self) -> int:
        """Channels of the classifier's input."""
        return self.config.channels

    def features(self, x: mx.array) -> list[mx.array]:
        """The normed map of each level of the body: strides 4, 8, 16 and 32."""
        self.check_input(x)
        maps: list[mx.array] = self.backbone(x)
        return maps

    def all_masks(self, x: mx.array, task: str = "panoptic") -> list[Masks]:
        """What the queries found before the first layer and after each one, for training.

        Raises:
            ValueError: `task` is none of `TASKS`.
        """
        raise NotImplementedError

    def __call__(self, x: mx.array, task: str = "panoptic") -> Masks:
        """What the queries found in the end."""
        return self.all_masks(x, task)[-1]

    def add_classifier(self) -> None:
        """A fresh classifier of the queries; for 0 classes their features are the output."""
        config = self.config
        self.decoder.head.class_embed = query_classifier(config.channels, config.num_classes)

    def stages(self) -> list[str]:
        """The body's; the pixel decoder and the queries are on top of it."""
        return [f"backbone.{stage}" for stage in self.backbone.stages()]

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn a state dict of Hugging Face or of upstream, who uses detectron2, into our names."""
        return own_weights(weights)


def check_task(name: str, task: str) -> None:
    """Raise unless a task is one that there is."""
    if task not in TASKS:
        raise ValueError(f"[{name}] 'task' must be one of {', '.join(TASKS)} but got {task!r}.")


def from_huggingface(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a [`UniversalConfig`][] from a `config.json`, by their names in it.

    Raises:
        KeyError: `config` lacks what has no default.
        ValueError: It describes what Hugging Face's own code does not compute as it was trained, or
            a body that is no NAT.
    """
    body = config["backbone_config"]
    if body.get("model_type") not in ("nat", "dinat"):
        raise ValueError(f"its backbone must be a nat or a dinat but is {body.get('model_type')!r}")
    refuse(config)
    labels = config.get("id2label")
    arguments = {own: config[theirs] for own, theirs in names.items() if theirs in config}
    if labels:
        arguments["num_classes"] = len(labels)
    backbone = NATConfig.from_huggingface({"mlp_ratio": 3.0, **body, "id2label": None})
    return {"backbone": backbone, **arguments}


def refuse(config: Mapping[str, Any]) -> None:
    """Raise for a `config.json` that would not be computed as the model was trained."""
    hidden = config.get("hidden_dim", 256)
    pixels = config.get("conv_dim", config.get("feature_size", 256))
    if pixels != hidden or any(config.get(f"enforce_input_{p}") for p in ("proj", "projection")):
        raise ValueError(
            "its pixel decoder's width must be its transformer's, without an input projection: the "
            "code that wrote it keeps that projection in a list that is not saved, so the file "
            "lacks its weights"
        )
    if config.get("pre_norm"):
        raise ValueError("pre_norm must be false: that branch of the code forgets the masks")
    if config.get("is_training") and config.get("dropout", 0.1):
        raise ValueError(
            "is_training must be false: with it the code that wrote it drops values at random, "
            "whether it trains or not"
        )
    fixed = {
        "common_stride": 4,
        "strides": [4, 8, 16, 32],
        "feature_strides": [4, 8, 16, 32],
        "activation_function": "relu",
        "norm": "GN",
        "task_seq_len": 77,
        "use_task_norm": True,
    }
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value} but is {config[name]}")

"""UPerNet: semantic segmentation on a NAT, DiNAT or DiNAT_s.

UPerNet: https://arxiv.org/abs/1807.10221, in the form of mmsegmentation, whose checkpoints NAT's
authors published. The body's four maps are pooled at several scales and fused top-down; dilations
are chosen for larger images than the classifiers'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..configs.record import Record
from ..layers.resize import resize_bilinear
from ..pretrained.quantize import refuse_quantized
from .base import Classifier, Config
from .dinat_s import DiNAT_s, DiNATsConfig
from .nat import NAT, DiNAT, Hierarchical, NATConfig
from .upernet_heads import AuxiliaryHead, UPerHead, pixel_classifier

# What a classifier has and a body has not.
_DROPPED = ("norm.", "head.")
BODIES: dict[str, type[Hierarchical]] = {cls.__name__: cls for cls in (NAT, DiNAT, DiNAT_s)}


@dataclass(frozen=True)
class UPerNetConfig(Config):
    """Configuration of a UPerNet.

    Args:
        backbone: Configuration of its body, or plain data: its arguments and, under
            `"architecture"`, `"NAT"`, `"DiNAT"` or `"DiNAT_s"`. Its `num_classes` is
            without effect.
        channels: Channels of the head.
        aux_channels: Channels of the auxiliary head.
        pool_sizes: Cells per axis of the head's poolings.
        num_classes: Outputs per pixel; 0 for the head's features instead.
        head_drop_rate: Dropout rate of whole channels before each classifier.
    """

    backbone: Any
    channels: int = 512
    aux_channels: int = 256
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    num_classes: int = 150
    head_drop_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", _body_config(self.backbone))
        if not isinstance(self.backbone, (NATConfig, DiNATsConfig)):
            raise TypeError(
                "[UPerNetConfig] 'backbone' must be a NATConfig, a DiNATsConfig or a mapping but "
                f"got {type(self.backbone).__name__}."
            )
        object.__setattr__(self, "backbone", dataclasses.replace(self.backbone, num_classes=0))
        if len(self.backbone.depths) < 2:
            raise ValueError(
                "[UPerNetConfig] 'backbone' must have two levels or more but got depths "
                f"{self.backbone.depths}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UPerNetConfig:
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
        body = {"architecture": self.body_class.__name__, **self.backbone.to_dict()}
        return {**super().to_dict(), "backbone": body}

    @property
    def body_class(self) -> type[Hierarchical]:
        """The body's model class; a DiNAT is a NAT."""
        return NAT if isinstance(self.backbone, NATConfig) else DiNAT_s

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.backbone.in_chans


def _body_config(values: Mapping[str, Any]) -> Config:
    architecture = values.get("architecture")
    if architecture not in BODIES:
        raise ValueError(
            f"[UPerNetConfig] the backbone's 'architecture' must be one of {', '.join(BODIES)} but "
            f"got {architecture!r}."
        )
    numbers = {name: value for name, value in values.items() if name != "architecture"}
    return BODIES[architecture].Config.from_dict(numbers)


class UPerNet(Classifier):
    """Semantic segmentation with a NAT, DiNAT or DiNAT_s body.

    [`natten_zoo.tasks.segmentation.segment`][] makes a mask of an image with it.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]` of any size.
        - Output: `[batch, height, width, num_classes]` logits.

    Examples:
        >>> from natten_zoo.models import NATConfig
        >>> body = NATConfig(8, depths=(1, 1), num_heads=(1, 2), kernel_size=3)
        >>> model = UPerNet(UPerNetConfig(body, channels=8, num_classes=5)).eval()
        >>> model(mx.zeros((1, 30, 50, 3))).shape
        (1, 30, 50, 5)
    """

    Config = UPerNetConfig
    TASK = "image-segmentation"
    CLASSIFIERS = ("decode_head.conv_seg", "auxiliary_head.conv_seg")

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__(config)
        body = config.backbone
        self.backbone = config.body_class(body).as_backbone(norms=True)
        classes, drop = config.num_classes, config.head_drop_rate
        dims = [info.channels for info in self.backbone.feature_info]
        self.decode_head = UPerHead(dims, config.channels, config.pool_sizes, classes, drop)
        self.auxiliary_head = AuxiliaryHead(dims[-2], config.aux_channels, classes, drop)

    @property
    def num_features(self) -> int:
        """Channels of the classifier's input."""
        return self.config.channels

    def features(self, x: mx.array) -> list[mx.array]:
        """The normed map of each level of the body: strides 4, 8, 16 and 32."""
        self.check_input(x)
        maps: list[mx.array] = self.backbone(x)
        return maps

    def forward_features(self, x: mx.array) -> mx.array:
        """The classifier's input, a map of stride 4: `[B, ceil(H/4), ceil(W/4), channels]`."""
        return self.decode_head.fuse(self.features(x))

    def decode(self, x: mx.array) -> mx.array:
        """Logits at stride 4, `[B, ceil(H/4), ceil(W/4), num_classes]`."""
        return self.decode_head.classify(self.forward_features(x))

    def decode_both(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Logits of the head, at stride 4, and of the auxiliary head, at stride 16, for training.

        The published models were trained on the sum of both cross-entropies, the second times 0.4,
        at full size.
        """
        maps = self.features(x)
        return self.decode_head.classify(self.decode_head.fuse(maps)), self.auxiliary_head(maps[-2])

    def __call__(self, x: mx.array) -> mx.array:
        return resize_bilinear(self.decode(x), x.shape[1:3])

    def add_classifier(self) -> None:
        """Fresh classifiers of the head and of the auxiliary head."""
        config = self.config
        self.decode_head.conv_seg = pixel_classifier(config.channels, config.num_classes)
        self.auxiliary_head.conv_seg = pixel_classifier(config.aux_channels, config.num_classes)

    def stages(self) -> list[str]:
        """The body's; the heads are on top of it."""
        return [f"backbone.{stage}" for stage in self.backbone.stages()]

    @classmethod
    def from_classifier(
        cls,
        classifier: Classifier,
        num_classes: int = 150,
        *,
        dilations: Sequence[Sequence[int]] | None = None,
        input_size: int = 512,
        **head: Any,
    ) -> UPerNet:
        """Start a model from an image classifier, to be trained, as the published ones were.

        The body is the classifier's; the norms of its maps and both heads are fresh.

        Args:
            classifier: A NAT, DiNAT or DiNAT_s with its weights.
            num_classes: Outputs per pixel.
            dilations: Dilation of each layer of each level of the body, which are in no weight.
                Default: the classifier's. Larger images want larger ones, such as
                `get_record("upernet_dinat_tiny").model["backbone"]["dilations"]`.
            input_size: Short side of the images that the model is for.
            head: Other arguments of [`UPerNetConfig`][], such as `channels`.

        Raises:
            TypeError: `classifier` is none of these.
            ValueError: It is quantized.

        Examples:
            >>> from natten_zoo import create_model
            >>> model = UPerNet.from_classifier(create_model("nat_mini"), num_classes=21)
            >>> model.record.input_size, model.record.note
            (512, 'its body is that of nat_mini')
        """
        if not isinstance(classifier, tuple(BODIES.values())):
            raise TypeError(
                f"[UPerNet.from_classifier] 'classifier' must be a {', '.join(BODIES)} but got "
                f"{type(classifier).__name__}."
            )
        refuse_quantized(classifier, "[UPerNet.from_classifier] 'classifier'")
        changes = {} if dilations is None else {"dilations": dilations}
        body = dataclasses.replace(classifier.config, **changes)
        model = cls(UPerNetConfig(body, num_classes=num_classes, **head))
        model.take_body(classifier)
        if classifier.record is not None:
            model.record = on_body(classifier.record, model.config, input_size)
        model.train(classifier.training)
        return model

    def take_body(self, classifier: Classifier) -> None:
        """Take the weights of a classifier's stages; norms of maps and heads stay as they are.

        Raises:
            ValueError: They do not fit.
        """
        weights: Any = tree_flatten(self.parameters())
        own: Any = tree_flatten(classifier.parameters())
        taken = {f"backbone.{name}": value for name, value in own if not name.startswith(_DROPPED)}
        self.load_weights(list({**dict(weights), **taken}.items()))

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn mmsegmentation's state dict into our layouts, without batch norm's step counters."""
        kept = {k: v for k, v in weights.items() if not k.endswith(".num_batches_tracked")}
        return Classifier.sanitize(kept)


def on_body(record: Record, config: UPerNetConfig, input_size: int) -> Record:
    """The record of a UPerNet whose body is that of a classifier with this record."""
    return record.of_other_weights(
        architecture=UPerNet.__name__,
        model=config.to_dict(),
        num_classes=config.num_classes,
        classes="",
        input_size=input_size,
        crop_pct=1.0,
        crop_mode="whole",
        interpolation="bilinear",
        note=f"its body is that of {record.name}",
    )

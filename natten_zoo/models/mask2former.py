"""Mask2Former: segmentation by masked attention, https://arxiv.org/abs/2112.01527.

DiNAT's authors trained it with a DiNAT-L for one task and data set each,
https://arxiv.org/abs/2209.15001.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .universal import Universal, UniversalConfig, check_task, from_huggingface
from .universal_queries import Masks

# Arguments of the configuration, and what they are called in a `config.json`.
_HUGGINGFACE = {
    "channels": "feature_size",
    "mask_channels": "mask_feature_size",
    "num_heads": "num_attention_heads",
    "pixel_depth": "encoder_layers",
    "pixel_hidden": "encoder_feedforward_dim",
    "hidden": "dim_feedforward",
    "num_queries": "num_queries",
}


@dataclass(frozen=True)
class Mask2FormerConfig(UniversalConfig):
    """Configuration of a Mask2Former; [`UniversalConfig`][] has the arguments."""

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> Mask2FormerConfig:
        """Translate the `config.json` of a transformers Mask2Former.

        Raises:
            KeyError: `config` lacks what has no default.
            ValueError: It describes what cannot be computed as it was trained.
        """
        depth = config.get("decoder_layers", 10) - 1  # what is predicted before the first counts
        return cls(depth=depth, **from_huggingface(config, _HUGGINGFACE))


class Mask2Former(Universal):
    """Masked-attention Mask Transformer with a NAT or DiNAT body.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, in_chans]` of any size.
        - Output: [`Masks`][natten_zoo.models.universal_queries.Masks] with class logits
          `[batch, queries, num_classes + 1]` and mask logits
          `[batch, ceil(height / 4), ceil(width / 4), queries]`.

    Examples:
        >>> from natten_zoo.models import NATConfig
        >>> body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
        >>> config = Mask2FormerConfig(body, channels=32, num_queries=5, num_classes=7, depth=1)
        >>> found = Mask2Former(config).eval()(mx.zeros((1, 64, 80, 3)))
        >>> found.classes.shape, found.masks.shape
        ((1, 5, 8), (1, 16, 20, 5))
    """

    Config = Mask2FormerConfig
    KEEP = 0.8

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.query_features = mx.random.normal((config.num_queries, config.channels))

    def all_masks(self, x: mx.array, task: str = "panoptic") -> list[Masks]:
        """What the queries found before the first layer and after each one, whatever the task."""
        check_task("Mask2Former", task)
        pixels = self.pixel_decoder(self.features(x))
        queries = mx.broadcast_to(self.query_features, (len(x), *self.query_features.shape))
        return self.decoder(queries, pixels)

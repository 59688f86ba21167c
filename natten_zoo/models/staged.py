"""Models whose stages give maps, and what others build on them: timm's words for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.checkpointing import checkpoint_layers
from ..layers.norm import LayerNorm
from ..layers.transformer_layer import EPS
from .base import Classifier

StagedT = TypeVar("StagedT", bound="Staged")


@dataclass(frozen=True)
class FeatureInfo:
    """What is known of a stage's map.

    Attributes:
        channels: Of the map.
        reduction: Pixels of the image per token, along height and width (a sequence's length).
        name: Of the part of the model that makes it.
    """

    channels: int
    reduction: int
    name: str


class Staged(Classifier):
    """Base of the classifiers that can be a backbone; `features` gives a map per stage.

    Subclasses say what the stages are, in `feature_info` and `stage_parts`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._frozen_stages = 0

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 for none."""
        return int(self.config.num_classes)

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """What is known of each map of `features`."""
        raise NotImplementedError

    def stage_parts(self) -> list[list[nn.Module]]:
        """The layers of each stage."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: mx.array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The last map, normed, and those of some stages.

        Args:
            x: The input, as the model takes it.
            indices: Stages, from 0 or from the end if negative; a number for the last so many.
                Default: all.
            norm: Norm the stages' maps by the model's last norm, which fits maps of its channels.
            intermediates_only: Return the stages' maps alone.

        Returns:
            `(last, maps)`, or `maps`.

        Raises:
            ValueError: There is no such stage, or `norm` does not fit one.
        """
        maps = self.features(x)
        chosen = chosen_stages(type(self).__name__, indices, len(maps))
        picked = [maps[index] for index in chosen]
        if norm:
            if any(y.shape[-1] != self.num_features for y in picked):
                raise ValueError(
                    f"[{type(self).__name__}] 'norm' must be False for maps of other channels than "
                    f"the last one's, {self.num_features}; a backbone has a norm for each: "
                    "as_backbone(norms=True)."
                )
            picked = [self.norm(y) for y in picked]
        return picked if intermediates_only else (self.norm(maps[-1]), picked)

    def get_intermediate_layers(
        self, x: mx.array, n: int | Sequence[int] = 1, *, norm: bool = False
    ) -> list[mx.array]:
        """The maps of the last `n` stages, or of those that `n` lists."""
        result: list[mx.array] = self.forward_intermediates(
            x, n, norm=norm, intermediates_only=True
        )
        return result

    def forward_head(self, x: mx.array, pre_logits: bool = False) -> mx.array:
        """Logits of a normed last map, or of its mean over all tokens, `[batch, channels]`.

        Args:
            x: Such as `forward_intermediates` and `forward_features` return.
            pre_logits: Return what the classifier would get.
        """
        pooled = x.mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
        return pooled if pre_logits else self.head(pooled)

    def freeze_stages(self, count: int) -> None:
        """Keep the tokenizer and the first stages as they are while the rest is trained.

        Their weights are not trainable, and stochastic depth and dropout are off in them. What else
        is frozen stays so; 0 lets go of the stages that were frozen before.

        Raises:
            ValueError: There are not so many stages.
        """
        stages = self.stage_parts()
        if not 0 <= count <= len(stages):
            raise ValueError(
                f"[{type(self).__name__}] 'count' must be in 0..{len(stages)} but got {count}."
            )
        for part in self._parts_below(self._frozen_stages):
            part.unfreeze()
        self._frozen_stages = count
        for part in self._parts_below(count):
            part.freeze()
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        """Training mode, but in frozen stages."""
        super().train(mode)
        for part in self._parts_below(self._frozen_stages):
            part.eval()
        return self

    def _parts_below(self, count: int) -> list[nn.Module]:
        if not count:
            return []
        layers = [layer for stage in self.stage_parts()[:count] for layer in stage]
        return [self.patch_embed, *layers]

    def set_grad_checkpointing(self, stages: Sequence[int] | None = None) -> int:
        """Let the layers of some stages forget their activations until the backward pass.

        Args:
            stages: Which. Default: all.

        Returns:
            How many layers do so.

        Raises:
            ValueError: There is no such stage, or a layer has dropout.
        """
        parts = self.stage_parts()
        chosen = chosen_stages(type(self).__name__, stages, len(parts))
        return sum(checkpoint_layers(layer) for index in chosen for layer in parts[index])

    def as_backbone(
        self: StagedT, out_indices: Sequence[int] | None = None, *, norms: bool = False
    ) -> StagedT:
        """Make a backbone of the model itself: its output are maps, and it has no classifier.

        Args:
            out_indices: The stages whose maps it returns. Default: all.
            norms: Give each of these maps a norm of its own, fresh, `norm{index}`.

        Returns:
            The model, now a [`Backbone`][natten_zoo.models.staged.Backbone] of its class.

        Raises:
            ValueError: There is no such stage.

        Examples:
            >>> from natten_zoo import create_model
            >>> backbone = create_model("nat_mini", features_only=True, out_indices=(1, 2, 3))
            >>> [(info.channels, info.reduction) for info in backbone.feature_info]
            [(128, 8), (256, 16), (512, 32)]
            >>> [y.shape for y in backbone(mx.zeros((1, 64, 96, 3)))]
            [(1, 8, 12, 128), (1, 4, 6, 256), (1, 2, 3, 512)]
        """
        info = self.feature_info
        chosen = chosen_stages(type(self).__name__, out_indices, len(info))
        del self.norm, self.head
        if norms:
            for index in chosen:
                self[f"norm{index}"] = LayerNorm(info[index].channels, eps=EPS)
        self.out_indices = tuple(chosen)
        self.config = type(self.config).from_dict({**vars(self.config), "num_classes": 0})
        self.__class__ = _backbone_of(type(self))  # type: ignore[assignment]
        return self


class Backbone(Staged):
    """A model whose output are the maps of some of its stages, for others to build on.

    Its class is derived from the model's own, too. Made by
    [`as_backbone`][natten_zoo.models.staged.Staged.as_backbone] and
    `create_model(name, features_only=True)`.

    Attributes:
        out_indices: The stages.
    """

    CLASSIFIERS = ()
    out_indices: tuple[int, ...]

    def __call__(self, x: mx.array) -> list[mx.array]:
        """The maps, each through its norm if it has one."""
        maps = self.features(x)
        norms = (self.get(f"norm{index}") for index in self.out_indices)
        return [
            maps[index] if norm is None else norm(maps[index])
            for index, norm in zip(self.out_indices, norms, strict=True)
        ]

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """What is known of each map that is returned."""
        info = super().feature_info
        return [info[index] for index in self.out_indices]

    def forward_intermediates(
        self,
        x: mx.array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and those of some of its stages; `norm` is each one's own.

        Arguments are those of the model. Stages are counted among those that are returned.
        """
        picked = self(x) if norm else [self.features(x)[index] for index in self.out_indices]
        chosen = chosen_stages(type(self).__name__, indices, len(picked))
        maps = [picked[index] for index in chosen]
        return maps if intermediates_only else (picked[-1], maps)

    def forward_head(self, x: mx.array, pre_logits: bool = False) -> mx.array:
        """Refuse: there is no classifier."""
        raise ValueError(f"[{type(self).__name__}] has no classifier: a backbone gives maps.")

    def reset_classifier(self, num_classes: int) -> None:
        """Refuse: there is no classifier."""
        self.forward_head(mx.zeros(0))

    def save_pretrained(self, path: Any, **kwargs: Any) -> Any:
        """Refuse: a folder is of a whole model."""
        raise ValueError(
            f"[{type(self).__name__}] 'save_pretrained' must be called on a whole model; a "
            "backbone is saved with the model that it is part of."
        )


@cache
def _backbone_of(cls: type[Staged]) -> type[Staged]:
    if issubclass(cls, Backbone):
        return cls
    return type(f"{cls.__name__}Backbone", (Backbone, cls), {"__doc__": cls.__doc__})


def chosen_stages(op: str, indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Stages of a model that has `count`, from 0.

    Raises:
        ValueError: There is no such stage.

    Examples:
        >>> chosen_stages("NAT", 2, 4), chosen_stages("NAT", (0, -1), 4)
        ([2, 3], [0, 3])
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(
                f"[{op}] the number of stages must be in 1..{count} but got {indices}."
            )
        return list(range(count - indices, count))
    if not all(-count <= index < count for index in indices):
        raise ValueError(
            f"[{op}] stages must be in {-count}..{count - 1} but got {tuple(indices)}."
        )
    return [index % count for index in indices]

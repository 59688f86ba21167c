"""What loading and saving ask of a model.

The models are above this package: they fill `natten_zoo.pretrained.registry.ARCHITECTURES`
with classes of this kind, and nothing here imports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..configs.record import Record

ConfigT = TypeVar("ConfigT", bound="Configuration")


class Configuration(Protocol):
    """The arguments that an architecture is built from."""

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """Build a configuration from plain data; a ValueError says what is wrong with it."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, ready for JSON."""


class Loadable(nn.Module):
    """A model that can be built from plain data, filled with a checkpoint's weights and saved.

    [`natten_zoo.models.Model`][] is the base of those that there are.

    Attributes:
        Config: Its configuration.
        TASK: What it does, one of `natten_zoo.configs.tasks.TASKS`.
        CLASSIFIERS: Its layers with one output per class, the main one first.
        EXTRA_OUTPUTS: Outputs of those layers that are no class, such as "nothing".
        config: The configuration that it was built from.
        record: What is known of its weights, None if nothing is.
    """

    Config: ClassVar[type[Configuration]]
    TASK: ClassVar[str]
    CLASSIFIERS: ClassVar[tuple[str, ...]] = ()
    EXTRA_OUTPUTS: ClassVar[int] = 0
    config: Any
    record: Record | None

    def __init__(self, config: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.record = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        raise NotImplementedError

    def current_record(self) -> Record | None:
        """The record, without what is not true of the model as it is now."""
        return self.record

    def as_backbone(self, out_indices: Sequence[int] | None = None) -> Loadable:
        """Make a backbone of the model: maps of its stages instead of a classifier's output.

        Raises:
            ValueError: It has no stages.
        """
        name = type(self).__name__
        raise ValueError(f"[{name}] 'features_only' must be False: a {name} is no backbone.")

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn a foreign state dict (torch layouts) into the model's names and layouts.

        Raises:
            LookupError: A weight that the names depend on is not there.
            ValueError: The weights cannot be those of such a model.
        """
        raise NotImplementedError

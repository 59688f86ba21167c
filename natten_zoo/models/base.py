"""Base classes of all models: configuration, classifier, loading and saving."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..configs import named_dilations
from ..configs.record import Record
from ..pretrained.load import load_pretrained
from ..pretrained.protocol import Loadable
from ..pretrained.save import push_to_hub, save_pretrained

ConfigT = TypeVar("ConfigT", bound="Config")
ModelT = TypeVar("ModelT", bound="Model")
# Arguments that are positive integers wherever they occur.
SIZES = frozenset(
    [
        *("embed_dim", "in_chans", "depth", "channels", "aux_channels"),
        *("patch_size", "img_size", "tubelet_size", "tokenizer_stride"),
    ]
)
# Patterns in names, and what takes their place.
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Arguments that define an architecture; each model subclasses it. Lists become tuples.

    Raises:
        ValueError: A size, a ratio or `num_classes` is out of range, or no number.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _frozen(value))
            if wanted := _wanted(name, value):
                raise ValueError(
                    f"[{type(self).__name__}] '{name}' must be {wanted} but got {value!r}."
                )

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """Build a configuration from plain data; an unknown name is refused.

        Raises:
            ValueError: A name is not one of the configuration's, or one is missing.
        """
        fields = dataclasses.fields(cls)
        known = [field.name for field in fields]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(
                f"[{cls.__name__}] arguments must be among {', '.join(known)} but got "
                f"{', '.join(map(str, unknown))}."
            )
        required = [f.name for f in fields if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"[{cls.__name__}] arguments {', '.join(missing)} are missing.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, ready for JSON."""
        return {name: _plain(value) for name, value in vars(self).items()}


class Model(Loadable):
    """Base of all models: a configuration, inputs that are checked, weights that come and go.

    Subclasses set `Config` and `TASK`, build themselves from a configuration and define
    `__call__` and, where foreign checkpoints exist, [`sanitize`][]. Models of classes are a
    [`Classifier`][].

    Attributes:
        TASK: What the model does, one of `natten_zoo.configs.tasks.TASKS`.
        CLASSIFIERS: Its layers with one output per class, the main one first.
        AXES: Those of its input between the batch and the channels.
        config: The configuration the model was built from.
        record: The checkpoint record of a published variant, else None.
    """

    Config: ClassVar[type[Config]]
    AXES: ClassVar[tuple[str, ...]] = ("height", "width")

    def __init__(self, config: Any) -> None:
        if not isinstance(config, self.Config):
            raise TypeError(
                f"[{type(self).__name__}] 'config' must be a {self.Config.__name__} but got "
                f"{type(config).__name__}."
            )
        super().__init__(config)

    def features(self, x: mx.array) -> list[mx.array]:
        """One feature map per stage, `[batch, height, width, channels]` each."""
        raise NotImplementedError

    def check_input(self, x: Any) -> None:
        """Refuse what [`features`][] cannot take; nothing is computed.

        Raises:
            TypeError: `x` is no array of MLX, or not of floating point numbers.
            ValueError: It has other axes or channels.
        """
        name, channels = f"[{type(self).__name__}] 'x' must be", self.config.in_chans
        if not isinstance(x, mx.array):
            raise TypeError(f"{name} an mlx.core.array but got {type(x).__name__}.")
        if x.ndim != len(self.AXES) + 2 or x.shape[-1] != channels:
            axes = ", ".join(("batch", *self.AXES, str(channels)))
            raise ValueError(f"{name} [{axes}] but got {list(x.shape)}.")
        if not mx.issubdtype(x.dtype, mx.floating):
            raise TypeError(f"{name} floating point numbers, prepared, but got {x.dtype}.")

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one.

        Raises:
            ValueError: There is none to replace.
        """
        name = type(self).__name__
        raise ValueError(f"[{name}.reset_classifier] must not be called: {name} has no classifier.")

    def stages(self) -> list[str]:
        """Its parts from the input up, by their names in the weights: one, then what builds on it.

        What is in none of them is on top of all. Training slows the lower ones by `layer_decay`,
        which models that do not say this refuse.
        """
        return []

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn a foreign state dict (torch layouts) into this model's names and layouts."""
        return {name: to_mlx_layout(value) for name, value in weights.items()}

    @classmethod
    def from_pretrained(cls: type[ModelT], name_or_path: str | Path, **kwargs: Any) -> ModelT:
        """Load a model with its weights from a name, a Hugging Face id, a file or a folder.

        See [`natten_zoo.pretrained.load.load_pretrained`][] for the arguments.
        """
        return load_pretrained(cls, name_or_path, **kwargs)

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> Path:
        """Write the model as a folder; see [`natten_zoo.pretrained.save.save_pretrained`][]."""
        return save_pretrained(self, path, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the model; see [`natten_zoo.pretrained.save.push_to_hub`][]."""
        return push_to_hub(self, repo_id, **kwargs)


class Classifier(Model):
    """Base of the models of classes: of images by default, of pixels or anything else if they say.

    Subclasses build themselves with a final `norm` and `head` and define `features`.

    Attributes:
        num_features: Channels of what [`forward_features`][] returns.
    """

    TASK = "image-classification"
    CLASSIFIERS: ClassVar[tuple[str, ...]] = ("head",)

    @property
    def num_features(self) -> int:
        """Channels of the classifier's input."""
        raise NotImplementedError

    def forward_features(self, x: mx.array) -> mx.array:
        """The classifier's input: final norm and mean over all tokens, `[batch, channels]`."""
        x = self.norm(self.features(x)[-1])
        return x.mean(axis=tuple(range(1, x.ndim - 1)))

    def __call__(self, x: mx.array) -> Any:
        """Logits, `[batch, num_classes]`."""
        return self.head(self.forward_features(x))

    def current_record(self) -> Record | None:
        """The record, without what a classifier of another size makes untrue."""
        return self.record and self.record.for_classes(self.config.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the features as the output.

        Raises:
            ValueError: `num_classes` is no integer from 0; the model is as it was.
        """
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        if self.record is not None:
            self.record = self.record.for_fresh_classifier(self.config.num_classes)
        self.add_classifier()

    def add_classifier(self) -> None:
        """Give the model what `CLASSIFIERS` names, fresh and of the configuration's size."""
        self.head = classifier(self.num_features, self.config.num_classes)


def check_levels(config: Any) -> None:
    """Raise unless a hierarchical configuration has heads and dilations for its depths.

    The name of dilations becomes what it stands for in `configs/dilations.yaml`.

    Raises:
        ValueError: `num_heads` or `dilations` do not go with `depths`.
    """
    name, depths = type(config).__name__, config.depths
    if isinstance(config.dilations, str):
        object.__setattr__(config, "dilations", named_dilations(config.dilations, depths))
    for argument, least in (("depths", 0), ("num_heads", 1)):
        value = getattr(config, argument)
        if not isinstance(value, tuple) or not all(type(n) is int and n >= least for n in value):
            raise ValueError(
                f"[{name}] '{argument}' must be integers from {least}, one per level, but got "
                f"{value!r}."
            )
    if len(config.num_heads) != len(depths):
        raise ValueError(
            f"[{name}] 'num_heads' must have one entry per level, {len(depths)}, but got "
            f"{config.num_heads}."
        )
    if config.dilations is not None and tuple(map(len, config.dilations)) != depths:
        raise ValueError(
            f"[{name}] 'dilations' must list one dilation per layer, {depths} per level, but got "
            f"{config.dilations}."
        )


def classifier(num_features: int, num_classes: int) -> nn.Module:
    """A linear classifier as upstream initializes it; the identity for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    head.weight = mx.random.normal(head.weight.shape, scale=0.02)
    head.bias = mx.zeros_like(head.bias)
    return head


def to_mlx_layout(value: mx.array) -> mx.array:
    """Output, input, height, width -> output, height, width, input.

    Convolution weights are the only arrays with four axes in these models.
    """
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value


def rename(name: str, rules: Rules) -> str:
    r"""Translate a name of a foreign state dict, rule by rule.

    Examples:
        >>> rename("encoder.norm.bias", [(r"^encoder\.", ""), (r"norm", "norm1")])
        'norm1.bias'
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _wanted(name: str, value: Any) -> str | None:
    """What an argument that many configurations have must be, if it is not."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    integer = number and isinstance(value, Integral)
    if name == "num_classes":
        return None if integer and value >= 0 else "an integer from 0"
    if name in SIZES:
        return None if integer and value > 0 else "a positive integer"
    if name == "mlp_ratio":
        return None if number and value > 0 else "a positive number"
    return None


def _frozen(value: Any) -> Any:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)  # NumPy's integers are not for JSON
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, tuple) else value

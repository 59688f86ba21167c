"""All facts of one checkpoint in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from numbers import Real
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What was measured with the weights.
ACCURACIES = ("top1", "miou", "miou_multi_scale", "pq", "ap")
# What belongs to one architecture, a classifier of one size included.
FIGURES = (*ACCURACIES, "params", "gmacs")
# What belongs to the weights.
WEIGHTS = ("hub", "url", "mirror", "file", "sha256", "parity")


@dataclass(frozen=True)
class Record:
    """What is known of a published model: its configuration, its weights, how to feed it.

    Records are written in `configs/*.yaml`; `natten_zoo.get_record` looks one up.

    Args:
        name: The variant, as upstream's constructor is called (`"nat_mini"`).
        architecture: Name of the model class in [`natten_zoo.models`][] (`"NAT"`).
        model: Arguments of that class's configuration.
        hub: Hugging Face repository of the weights.
        url: Upstream's own file.
        mirror: Another address of the same file.
        file: Weights that ship in the package, relative to the `natten_zoo` folder.
        sha256: Digest of the weights file, where it is known.
        license: License of the weights.
        source: Project that published them.
        paper: Where the model is described.
        parity: The weights, `"trained"` or `"generated"`, with which this project's tests
            compare the model with a reference; None where there is none.
        input_size: Side of the square image in pixels (of the cube of voxels) that the published
            figures are for; 0 where any size is as good, or an input has no sides. What an input is
            the model's task tells (`natten_zoo.configs.tasks`).
        frames: Frames of the clip that the published figures are for; None for images.
        spacing: Millimeters per voxel and axis that volumes are resampled to. Default: their own.
        intensity: The values of volumes, Hounsfield units for a CT, that become 0 and 1; others are
            clipped. Default: each volume is scaled to mean 0 and variance 1.
        crop_pct: The short side is resized to `floor(input_size / crop_pct)`.
        crop_mode: `"center"` (resize the short side, crop the center), `"squash"` (resize to a
            square), `"whole"` (resize the short side, for segmentation) or `"volume"` (cubes
            that slide over a volume).
        longest: The long side is at most this many pixels, with `crop_mode` `"whole"`. Default:
            four times `input_size`.
        interpolation: Resampling filter of that resize.
        mean: Per channel mean, of values in 0..1.
        std: Per channel standard deviation.
        num_classes: Size of the classifier.
        classes: Name of the label set (`"imagenet-1k"`, `"imagenet-22k"`,
            `"fashion-mnist"`), or the classes' names.
        top1: Published top-1 accuracy in percent.
        miou: Published mean intersection over union in percent, at one scale.
        miou_multi_scale: The same, averaged over six scales and their mirror images.
        pq: Published panoptic quality in percent.
        ap: Published average precision of instances in percent.
        tasks: What a model that finds segments was trained for: `"panoptic"`, `"instance"`,
            `"semantic"`. Empty where that is not known, or for models that do one thing.
        params: Number of parameters, classifier included.
        gmacs: Billions of multiply-adds for one input, of `input_size` where that is not 0.
        note: Anything a user of these weights should know.
    """

    name: str
    architecture: str
    model: Mapping[str, Any]
    hub: str | None = None
    url: str | None = None
    mirror: str | None = None
    file: str | None = None
    sha256: str | None = None
    license: str = "MIT"
    source: str | None = None
    paper: str | None = None
    parity: str | None = None
    input_size: int = 224
    frames: int | None = None
    spacing: tuple[float, ...] | None = None
    intensity: tuple[float, float] | None = None
    crop_pct: float = 0.875
    crop_mode: str = "center"
    longest: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_classes: int = 1000
    classes: str | tuple[str, ...] = "imagenet-1k"
    top1: float | None = None
    miou: float | None = None
    miou_multi_scale: float | None = None
    pq: float | None = None
    ap: float | None = None
    tasks: tuple[str, ...] = ()
    params: int | None = None
    gmacs: float | None = None
    note: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Build a record from plain data; an unknown field is refused, and so is a wrong type.

        Raises:
            ValueError: A field is not one of a record's, or not what it should be.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"[Record] fields must be among {sorted(known)} but got {', '.join(unknown)}."
            )
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        values = {**values, **lists}
        for name, kind in _kinds().items():
            if name in values and not _is_a(values[name], kind):
                wanted = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else kind
                raise ValueError(
                    f"[Record] '{name}' must be {wanted} but got {repr(values[name])[:100]}."
                )
        for name in ("input_size", "num_classes"):
            if values.get(name, 0) < 0:
                raise ValueError(f"[Record] '{name}' must be from 0 but got {values[name]}.")
        return cls(**values)

    def for_classes(self, num_classes: int) -> Record:
        """The record with a classifier of another size, whose names and figures are not known."""
        if num_classes == self.num_classes:
            return self
        return self.for_fresh_classifier(num_classes)

    def for_fresh_classifier(self, num_classes: int) -> Record:
        """The record with an untrained classifier: no names, no accuracy.

        Parameters and multiply-adds stay true of one of the same size.
        """
        names = ACCURACIES if num_classes == self.num_classes else FIGURES
        unknown: dict[str, Any] = dict.fromkeys(names)
        return replace(self, num_classes=num_classes, classes="", **unknown)

    def for_config(self, changed: Mapping[str, Any]) -> Record:
        """The record of a model some arguments of whose configuration are others.

        Figures are of one architecture, which all of them change but rates and `num_classes`,
        for which see [`for_classes`][]. Means and deviations follow `in_chans` as the weights
        of the first convolution do (`adapt_input_channels`).
        """
        facts: dict[str, Any] = {}
        if any(name != "num_classes" and not name.endswith("_rate") for name in changed):
            facts = dict.fromkeys(FIGURES)
        if "in_chans" in changed:
            facts["mean"] = _for_channels(self.mean, changed["in_chans"])
            facts["std"] = _for_channels(self.std, changed["in_chans"])
        return replace(self, **facts) if facts else self

    def untrained(self) -> Record:
        """The record of a model with random weights, of which no accuracy is true."""
        accuracies: dict[str, Any] = dict.fromkeys(ACCURACIES)
        return replace(self, **accuracies)

    def of_other_weights(self, **changes: Any) -> Record:
        """The record of a model made of this one: nothing that was published is true of it."""
        unknown: dict[str, Any] = dict.fromkeys((*WEIGHTS, *FIGURES))
        return replace(self, **{**unknown, **changes})

    @property
    def has_weights(self) -> bool:
        """Whether weights are published anywhere."""
        return any((self.file, self.hub, self.url, self.mirror))


@cache
def _kinds() -> dict[str, Any]:
    """The type of each field."""
    return get_type_hints(Record)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether plain data is of a field's type; an integer is a float, and no bool is a number."""
    kinds = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is_a(value, other) for other in kinds)
    if get_origin(kind) is tuple:
        many = kinds[-1] is Ellipsis
        fits = isinstance(value, tuple) and (many or len(value) == len(kinds))
        return fits and all(_is_a(item, kinds[0]) for item in value)
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, get_origin(kind) or kind)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values per channel: of one channel their mean; of several that repeat a single one, it."""
    if channels == 1:
        return (sum(values) / len(values),)
    return values * channels if len(values) == 1 else values

"""The recipe of a training run: every option once, with its default and its help.

A recipe is resolved from three sources: the command line wins over the YAML file, which wins over
the defaults below. The resolved recipe is saved with the run, and a resumed run must agree with it.
"""

# ruff: noqa: RUF009 -- `option` is dataclasses.field with a line of help
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from .. import configs
from ..configs.tasks import DATA_SETS

# A resumed run may have other values of these: they change neither data nor arithmetic.
FREE_TO_CHANGE = frozenset(
    ("out", "max_minutes", "workers", "save_every", "log_every", "report_to")
)

LARGEST_SCALE = 8

# Paths, or names that are no paths: the same place may be written in several ways.
PLACES = ("data", "model", "teacher")

CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("auto", "semantic", "diffusion"),
    "tune": ("full", "head", "lora"),
    "optimizer": ("adamw", "sgd", "lion"),
    "schedule": ("cosine", "step", "constant"),
    "dtype": ("float32", "bfloat16"),
    "crop": ("none", "shift", "resized"),
    "compile": ("auto", "yes", "no"),
    "affine": ("auto", "sform", "qform", "pixdim"),
    "report_to": ("none", "tensorboard", "wandb"),
}


# Where numbers must lie: as messages say it, as a check, and which.
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "be at least 1",
        lambda value: value >= 1,
        ("epochs", "batch_size", "accumulate", "log_every", "lora_rank", "workers", "image_size"),
    ),
    (
        "not be negative",
        lambda value: 0 <= value < math.inf,
        (
            *("lr", "min_lr", "weight_decay", "layer_decay", "clip_norm", "warmup_epochs"),
            "teacher_features",
            *("crop_padding", "jitter", "mixup", "cutmix", "seed", "save_every", "max_minutes"),
        ),
    ),
    (
        "lie in [0, 1]",
        lambda value: 0 <= value <= 1,
        ("val_fraction", "smoothing", "teacher_share", "erase", "ema_decay", "mix_prob"),
    ),
    ("lie in [0, 1)", lambda value: 0 <= value < 1, ("momentum", "drop_path")),
    ("lie in (0, 1]", lambda value: 0 < value <= 1, ("crop_scale",)),
    ("be positive", lambda value: 0 < value < math.inf, ("temperature",)),
    ("lie in [0, 10]", lambda value: 0 <= value <= 10, ("rand_augment",)),
)


def option(default: Any, help: str) -> Any:
    """Declare a recipe field: its default value and one line of help."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """Every choice that a training run makes."""

    # what to train, on what
    data: str = option("", "image folder, tar archive, CSV list, or the name of a built-in set")
    model: str = option("nat_mini", "model name, or a folder saved by this library")
    out: str = option("", "folder of the run: checkpoints, metrics, curve, resolved recipe")
    task: str = option(
        "auto",
        "what to learn: auto is what the model does, semantic the class of every pixel, with a "
        "UPerNet, a Mask2Former, or a UPerNet that is built on a classifier, diffusion to make "
        "images, with an HDiT",
    )
    pretrained: bool = option(True, "start from the published weights of the model")
    model_args: dict[str, Any] = option({}, "fields of the model's config to replace (YAML only)")
    image_size: int | None = option(None, "input size in pixels; default: the model's own")
    val_fraction: float = option(0.1, "share held out for validation where DATA has no val/")

    reduce_labels: bool = option(
        False, "masks number classes from 1, and 0 is no class, as ADE20K's do"
    )

    affine: str = option(
        "auto", "what tells where voxels are if a NIfTI header contradicts itself; auto refuses"
    )

    # which parameters learn
    tune: str = option("full", "full, head (linear probe) or lora")
    freeze: list[str] = option(
        [],
        "modules or parameters that stay fixed, by name or by what it begins with: patch_embed, "
        "levels, levels.0.blocks.1",
    )
    lora_rank: int = option(8, "rank of the LoRA matrices")
    lora_scale: float = option(2.0, "factor on the LoRA update")
    lora_targets: list[str] = option(["qkv", "proj", "fc1", "fc2"], "linear layers that get LoRA")

    # whose answers are learned, too
    teacher: str = option("", "model whose answers the trained one learns, by name or path")
    temperature: float = option(2.0, "softens the answers of both; 1 leaves them as they are")
    teacher_share: float = option(0.7, "of the loss that the teacher's answers make")
    teacher_features: float = option(
        0.0, "weight of how alike the teacher's features of images are; 0 is off"
    )
    teacher_stage: int = option(-1, "whose features these are, from 0, or from the last, -1")

    # optimization
    epochs: int = option(30, "passes over the training images")
    batch_size: int = option(64, "images per update, over all processes")
    accumulate: int = option(1, "micro-batches whose gradients make one update")
    optimizer: str = option("adamw", "adamw, sgd or lion")
    lr: float = option(1e-3, "highest learning rate")
    momentum: float = option(0.9, "momentum of sgd")
    betas: list[float] = option([0.9, 0.999], "averaging factors of adamw and lion")
    weight_decay: float = option(0.05, "decoupled decay; norms, biases and rpb are spared")
    layer_decay: float = option(1.0, "learning-rate factor per block, from the head downwards")
    clip_norm: float = option(5.0, "largest norm of the gradient; 0 switches clipping off")
    schedule: str = option("cosine", "cosine, step (a tenth at 60 %% and 85 %%) or constant")
    warmup_epochs: float = option(1.0, "linear warm-up from a thousandth of lr")
    min_lr: float = option(1e-5, "learning rate at the end of the cosine")
    ema_decay: float = option(0.0, "moving average of the weights, such as 0.999; 0 is off")
    dtype: str = option("float32", "arithmetic of the network; masters are always float32")
    compile: str = option(
        "auto", "fuse the step's operations; auto does on Metal, as CUDA and CPU take minutes"
    )
    grad_checkpoint: bool = option(False, "recompute each block in the backward pass: less memory")
    drop_path: float | None = option(None, "stochastic depth rate; default: the model's own")

    # augmentation, on the device
    crop: str = option("resized", "none, shift (zero-padded translation) or resized (random area)")
    crop_padding: int = option(4, "largest shift in pixels")
    crop_scale: float = option(0.35, "smallest area of a resized crop")
    scales: list[float] = option(
        [0.5, 2.0], "smallest and largest scale of an image and its mask before a crop of them"
    )
    flip: bool = option(True, "mirror left-right half of the time")
    jitter: float = option(0.0, "strength of brightness, contrast and saturation changes")
    rand_augment: int = option(0, "magnitude (0-10) of two random operations per image; 0 is off")
    erase: float = option(0.0, "probability of erasing a random rectangle")
    mixup: float = option(0.0, "alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = option(0.0, "alpha of cutmix's Beta distribution; 0 is off")
    mix_prob: float = option(1.0, "share of batches that are mixed at all")
    smoothing: float = option(0.1, "label smoothing")

    # the run
    seed: int = option(0, "seed of initial weights, order of images and augmentation")
    sliding_window: bool = option(
        False, "validate a UPerNet by squares of its input size, not by whole images"
    )
    workers: int = option(4, "threads that decode images")
    max_minutes: float = option(0.0, "stop with a checkpoint after so many minutes; 0 is no limit")
    save_every: int = option(0, "updates between checkpoints; 0 saves at every epoch's end only")
    log_every: int = option(20, "updates between two lines of metrics.jsonl")
    report_to: str = option("none", "none, tensorboard or wandb")

    def __post_init__(self) -> None:
        name = self.data.replace("-", "_")
        if name in DATA_SETS and not Path(self.data).exists():
            self.data = name
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                wanted = ", ".join(known)
                raise ValueError(
                    f"[Recipe] '{name}' must be one of {wanted} but got {getattr(self, name)!r}."
                )
        for text, fits, names in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"[Recipe] '{name}' must {text} but got {value}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"[Recipe] 'betas' must be two numbers in [0, 1) but got {self.betas}."
            )
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1] <= LARGEST_SCALE:
            raise ValueError(
                f"[Recipe] 'scales' must be two rising numbers in (0, {LARGEST_SCALE}] but got "
                f"{self.scales}."
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"[Recipe] 'batch_size' {self.batch_size} must be a multiple of "
                f"'accumulate' {self.accumulate}."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe, refusing names that no field has and values of another type."""
        kinds = get_type_hints(cls)
        if unknown := [name for name in values if name not in kinds]:
            raise ValueError(
                f"[Recipe] unknown option {unknown[0]!r}; known are {', '.join(sorted(kinds))}."
            )
        return cls(**{name: _coerce(name, value, kinds[name]) for name, value in values.items()})

    @classmethod
    def load(cls, path: str | Path | None, overrides: dict[str, Any] | None = None) -> Recipe:
        """Resolve `overrides` over a YAML file over the defaults.

        Args:
            path: The file, or the name of one that comes with the library, such as `finetune`.
            overrides: Options that win over the file's.
        """
        return cls.from_dict({**(_read(path) if path else {}), **(overrides or {})})

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, in the order of the fields."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)

    def conflicts(self, other: Recipe) -> list[str]:
        """Names of the options that differ and that a resumed run may not change."""

        def differ(name: str) -> bool:
            ours, theirs = getattr(self, name), getattr(other, name)
            if name in PLACES:
                return Path(ours).resolve() != Path(theirs).resolve()
            return ours != theirs

        names = [f.name for f in dataclasses.fields(self) if f.name not in FREE_TO_CHANGE]
        return list(filter(differ, names))


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    folder = files(configs) / "recipes"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir())


def _find(path: str | Path) -> Any:
    """The recipe file at a path, or the library's own of that name."""
    own = files(configs) / "recipes" / f"{path}.yaml"
    if Path(path).is_file():
        return Path(path)
    if not own.is_file():
        reason = "a folder, not a recipe" if Path(path).is_dir() else "no such file or recipe"
        raise FileNotFoundError(
            f"[Recipe] {path}: {reason}; recipes are {', '.join(recipe_names())}."
        )
    return own


def _read(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file."""
    try:
        values = yaml.safe_load(_find(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"[Recipe] {path} must be YAML but is not: {reason}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"[Recipe] {path} must hold a mapping of options.")
    return values


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """Turn a YAML value into the field's type: 1 is a float, 1e-3 (a YAML string) too."""
    options = [k for k in get_args(kind) if isinstance(k, type)] if _is_optional(kind) else [kind]
    if value is None and type(None) in options:
        return None
    wanted = next((k for k in options if k is not type(None)), kind)
    base = getattr(wanted, "__origin__", wanted)
    if base is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)
    if not isinstance(value, base) or (base is int and isinstance(value, bool)):
        raise ValueError(f"[Recipe] '{name}' must be {base.__name__} but got {value!r}.")
    if isinstance(value, list):
        (inner,) = get_args(wanted)
        return [_coerce(f"{name}[{index}]", item, inner) for index, item in enumerate(value)]
    return value


def _is_optional(kind: Any) -> bool:
    return type(None) in get_args(kind)

"""Getting weights into models: `from_pretrained` and what `create_model` needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from .adapt import adapt
from .describe import build, describe, named
from .download import Hub
from .protocol import Loadable
from .quantize import prepare
from .readers.errors import CheckpointError
from .readers.reader import Checkpoint, read_checkpoint
from .registry import build_model, get_record
from .source import locate
from .strict import load_strict, mismatches
from .translate import own_names

logger = logging.getLogger("natten_zoo")

ModelT = TypeVar("ModelT", bound=Loadable)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load_pretrained(
    cls: type[ModelT] | None,
    name_or_path: str | os.PathLike[str],
    *,
    model: str | None = None,
    num_classes: int | None = None,
    dtype: mx.Dtype | str | None = None,
    strict: bool = True,
    lazy: bool = False,
    ema: bool = True,
    weights: str | None = None,
    skip: str | Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> ModelT:
    """Load a model with its weights, ready for inference.

    Args:
        cls: The class that the model must be of, or None for any.
        name_or_path: A registered name (`"nat_mini"`), a file or folder, a Hugging Face
            repository or an `https` address; see `natten_zoo.pretrained.source.locate`.
        model: The variant that a bare `.pth` file holds. It is found by the shapes of the weights
            and the file's name where they leave one possibility. The size of the classifier is
            that of the weights either way.
        num_classes: Replace the classifier by a fresh one of this size, unless it has that size.
        dtype: Convert floating point weights: `"float32"`, `"float16"`, `"bfloat16"`.
        strict: Every weight must fit. Otherwise those that don't are left as initialized, and the
            log lists them.
        lazy: Leave the weights of safetensors files on disk until they are used.
        ema: Prefer the averaged weights of a training checkpoint.
        weights: Which of several sets of weights in a file (`"student"`); an error lists them.
        skip: Names of entries to leave out, with `*` and `?` (`"aux_head.*"`).
        revision: Branch, tag or commit of a Hugging Face repository.
        cache_dir: Where downloads are kept.
        local_files_only: Never use the network.
        token: Hugging Face token.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There is nothing at the path.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The file is damaged, hostile or of an unknown format.
        ValueError: The name is unknown, the variant ambiguous, the model of another class than
            `cls`, or weights do not fit; the message lists every one of them with both shapes.

    Examples:
        >>> import tempfile
        >>> from natten_zoo import create_model
        >>> folder = create_model("nat_mini", num_classes=10).save_pretrained(tempfile.mkdtemp())
        >>> model = load_pretrained(None, folder, dtype="bfloat16")
        >>> type(model).__name__, model.config.num_classes, model.training
        ('NAT', 10, False)
    """
    source = locate(name_or_path, Hub(revision, cache_dir, local_files_only, token))
    checkpoint = read_checkpoint(source.path, ema=ema, weights=weights, skip=skip)
    description = describe(checkpoint, cls, model, source.record)
    built = build(checkpoint, description, num_classes)
    if cls is not None and not isinstance(built, cls):
        raise ValueError(
            f"[{cls.__name__}.from_pretrained] {str(name_or_path)!r} must be a {cls.__name__} but "
            f"is a {type(built).__name__}; call {type(built).__name__}.from_pretrained."
        )
    changed = () if num_classes is None else ("num_classes",)
    fill(built, checkpoint, changed=changed, strict=strict, dtype=dtype, lazy=lazy)
    built.eval()
    return cast(ModelT, built)


def create_model(
    name: str,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    ema: bool = True,
    weights: str | None = None,
    skip: str | Sequence[str] = (),
    hub: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Loadable:
    """Build a published variant, with random or with pretrained weights.

    Args:
        name: The variant, one of `list_models`, or its Hugging Face repository.
        pretrained: True for the variant's published weights, or a path, a Hugging Face
            repository or another name to take weights from.
        features_only: Make it a backbone, whose output are the maps of its stages; what is loaded
            with its classifier is dropped, and the log says so
            (`natten_zoo.models.staged.Staged.as_backbone`).
        out_indices: The stages whose maps a backbone returns. Default: all.
        ema: As in [`load_pretrained`][], of the file that `pretrained` names.
        weights: Likewise.
        skip: Likewise.
        hub: Keyword arguments of the download: `revision`, `cache_dir`,
            `local_files_only`, `token`.
        overrides: Arguments of the architecture's configuration to change, such as
            `num_classes`, `in_chans`, `kernel_size`, `dilations`, `drop_path_rate`.
            Pretrained weights are fitted to them (`natten_zoo.pretrained.adapt.adapt`).
            Without `num_classes` the classifier has the size of the weights'.

    Returns:
        The model; in evaluation mode if its weights are pretrained. Its `record` has those of
        the published figures that are true of it: no accuracy of random weights, and none at all of
        another architecture.

    Raises:
        ValueError: The name or an override is unknown, or weights do not fit; or nothing is read
            and `ema`, `weights` or `skip` is given.

    Examples:
        >>> from natten_zoo import create_model
        >>> create_model("nat_mini", num_classes=10).config.num_classes
        10
    """
    if out_indices is not None and not features_only:
        raise ValueError("[create_model] 'out_indices' must be None without 'features_only'.")
    record = get_record(name)
    for option, default in ((ema, True), (weights, None), (tuple(skip), ())):
        if pretrained is False and option != default:
            raise ValueError(
                "[create_model] 'pretrained' must name weights where 'ema', 'weights' or 'skip' "
                "choose among them but got False."
            )
    if pretrained is False:
        model = build_model(record, overrides)
        model.record = model.record and model.record.untrained()
    else:
        source = locate(record.name if pretrained is True else pretrained, Hub(**(hub or {})))
        checkpoint = read_checkpoint(source.path, ema=ema, weights=weights, skip=skip)
        model = build_model(record if pretrained is True else named(record, checkpoint), overrides)
        fill(model, checkpoint, changed=overrides.keys())
        model.eval()
    if not features_only:
        return model
    if pretrained is not False and model.CLASSIFIERS:
        dropped = "%s: its last norm and its classifier of %d classes are dropped for a backbone"
        logger.warning(dropped, name, model.config.num_classes)
    return model.as_backbone(out_indices)


def load_weights(
    model: Loadable,
    name_or_path: str | os.PathLike[str],
    *,
    changed: Collection[str] = (),
    strict: bool = True,
    ema: bool = True,
    weights: str | None = None,
    skip: str | Sequence[str] = (),
    **hub: Any,
) -> None:
    """Load the weights of a checkpoint into a model that is already built.

    Args:
        model: The model; its configuration decides, the checkpoint's is not looked at.
        name_or_path: As in [`load_pretrained`][].
        changed: Arguments of the configuration that differ from the checkpoint's; its weights are
            fitted to them (`natten_zoo.pretrained.adapt.adapt`).
        strict: As in [`load_pretrained`][].
        ema: As in [`load_pretrained`][].
        weights: As in [`load_pretrained`][].
        skip: As in [`load_pretrained`][].
        hub: `revision`, `cache_dir`, `local_files_only`, `token` of a download.

    Raises:
        ValueError: Weights do not fit.
    """
    path = locate(name_or_path, Hub(**hub)).path
    checkpoint = read_checkpoint(path, ema=ema, weights=weights, skip=skip)
    fill(model, checkpoint, changed=changed, strict=strict)


def fill(
    model: Loadable,
    checkpoint: Checkpoint,
    *,
    changed: Collection[str] = (),
    strict: bool = True,
    dtype: mx.Dtype | str | None = None,
    lazy: bool = False,
) -> None:
    """Put a checkpoint's weights into a model: rename, lay out, fit, check, convert."""
    weights = adapt(own_names(model, checkpoint), model, changed)
    try:
        prepare(model, checkpoint.config, weights)
    except ValueError as error:
        raise CheckpointError(checkpoint.path, str(error)) from error
    if not strict:
        weights = _only_fitting(model, weights, checkpoint)
    load_strict(model, weights, str(checkpoint.path))
    if dtype is None and checkpoint.format == "mlx":
        # What the weights were made for, where they are stored in less to be small.
        dtype = (checkpoint.config or {}).get("dtype")
    if dtype is not None:
        model.set_dtype(as_dtype(dtype))
    if not lazy:
        mx.eval(model.parameters())


def as_dtype(dtype: mx.Dtype | str) -> mx.Dtype:
    """A floating point dtype, given itself or its name.

    Raises:
        ValueError: It is none that models are computed in.
    """
    for name, known in DTYPES.items():
        if dtype in (name, known):
            return known
    raise ValueError(
        f"[from_pretrained] 'dtype' must be one of {', '.join(DTYPES)} but got {dtype}."
    )


def _only_fitting(
    model: Loadable, weights: Mapping[str, mx.array], checkpoint: Checkpoint
) -> dict[str, mx.array]:
    """The weights that fit, and the model's own for the others; the log lists those."""
    own = dict(tree_flatten(model.parameters()))
    result = {
        name: weights[name] if name in weights and weights[name].shape == value.shape else value
        for name, value in own.items()
    }
    if problems := mismatches(model, weights):
        listed = "\n  ".join(problems)
        logger.warning(
            "%s: %d weights do not fit and were skipped\n  %s",
            checkpoint.path,
            len(problems),
            listed,
        )
    return result

"""What several verbs share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..data import Preprocess
    from ..models import Model

DEFAULT_MODEL = "nat_pico_fashion"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--model``, the same for every verb."""
    parser.add_argument(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|PATH",
        help="a name of `natten-zoo list`, a Hugging Face id, or a local checkpoint file or "
        "folder (default: %(default)s, which is in the package)",
    )
    add_variant_argument(parser)


def add_variant_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--variant``, for files that do not tell what they hold."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which model of `natten-zoo list` a bare weights file holds, where that is ambiguous",
    )


def share(text: str) -> float:
    """Reads a number in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in 0..1 but got {text}")
    return value


def positive(text: str) -> int:
    """An argument that must be a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive but got {text}")
    return value


def open_classifier(name: str, variant: str | None = None) -> tuple[Model, Preprocess]:
    """Loads a model, and how its images are prepared.

    Raises:
        ValueError: If the model is no classifier, or its record is for other images.
    """
    import mlx.core as mx

    from ..data import Preprocess
    from ..pretrained.load import load_pretrained

    model: Model = load_pretrained(None, name, model=variant)
    if model.TASK != "image-classification":
        raise ValueError(f"model '{name}' must classify images but is made for {model.TASK}.")
    if model.record is not None and not model.record.input_size:
        raise ValueError(f"model '{name}' is no classifier of images.")
    preprocess = Preprocess() if model.record is None else Preprocess.from_record(model.record)
    if model.config.in_chans != preprocess.channels:
        raise ValueError(
            f"model '{name}' takes images of {model.config.in_chans} channels but its mean and "
            f"std are for {preprocess.channels}."
        )
    image = mx.zeros((1, preprocess.size, preprocess.size, preprocess.channels))
    if not model.config.num_classes or model(image).ndim != 2:  # a shape costs no computation
        raise ValueError(f"model '{name}' is no classifier of images.")
    return model, preprocess


def output_names(model: Model) -> tuple[str, ...]:
    """A name for each output of a classifier, ``class 7`` where none is known."""
    from ..data import labels

    label_set = model.record.classes if model.record else None
    return labels.output_names(label_set, model.config.num_classes)


def progress(total: int, batch_size: int, unit: str = "image") -> tqdm:
    """A progress bar on standard error; none for a single batch or when that is no terminal."""
    from tqdm import tqdm

    hidden = True if total <= batch_size else None  # None: only on a terminal
    return tqdm(total=total, unit=unit, file=sys.stderr, disable=hidden, leave=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Columns of text; ``align`` has ``<`` or ``>`` for each of them.

    Example:
        >>> print(table(["name", "n"], [["a", "1"], ["bcdef", "23"]], "<>"))
        name    n
        a       1
        bcdef  23
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = zip(row, align, widths, strict=True)
        lines.append("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())
    return "\n".join(lines)

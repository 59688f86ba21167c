"""Arguments that several verbs have."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "nat_pico_fashion"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, the same for every verb."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME|PATH",
        help="a name of `natten-zoo list`, a Hugging Face id, or a local checkpoint file or "
        f"folder (default: {DEFAULT_MODEL}, which is in the package)",
    )
    add_variant_argument(parser)


def add_own_model_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--model` to a verb whose models are no classifiers, with the one it takes else."""
    parser.add_argument(
        "-m",
        "--model",
        default=default,
        metavar="NAME|PATH",
        help="a name, or a checkpoint's file or folder (default: %(default)s)",
    )
    add_variant_argument(parser)


def chosen_model(args: argparse.Namespace, *, aloud: bool = True) -> str:
    """The model that was named, or the packaged one, of which a line says what it knows."""
    if args.model is None and aloud:
        print(
            f"no --model was named, so {DEFAULT_MODEL} answers, which is in the package and knows "
            "ten kinds of clothes on 28 x 28 pixels, in gray; for photos: --model nat_mini",
            file=sys.stderr,
        )
    return args.model or DEFAULT_MODEL


def add_variant_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--variant` and the choice of weights, for files that do not tell what they hold."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which model of `natten-zoo list` a bare weights file holds, where that is ambiguous",
    )
    add_weights_arguments(parser)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what tells which of a file's entries are the weights."""
    parser.add_argument(
        "--weights",
        metavar="KEY",
        help="which weights of a file to take that holds several sets; an error lists them",
    )
    parser.add_argument(
        "--no-ema", action="store_true", help="not the averaged weights of a training checkpoint"
    )
    parser.add_argument(
        "--skip",
        metavar="NAME",
        action="append",
        default=[],
        help="leave out entries of the file that are called so (with * and ?; may be repeated)",
    )


def weights_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those arguments, as keywords of `load_pretrained` and `read_checkpoint`."""
    return {"weights": args.weights, "ema": not args.no_ema, "skip": args.skip}


def add_csv_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--csv`, for verbs that measure."""
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append the figures as a line to a table: model, size, accuracy, speed, device, "
        "versions, command",
    )


def add_order_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--by-order`, for data whose classes are called otherwise than the model's."""
    parser.add_argument(
        "--by-order",
        action="store_true",
        help="DATA's folders, sorted, are the model's classes in their order, whatever their names",
    )


def add_top_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--top`, for verbs that show the most probable classes."""
    parser.add_argument(
        "-k", "--top", type=positive, default=5, metavar="K", help="classes shown (default: 5)"
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


def png(text: str) -> Path:
    """An argument that must name a PNG file: that is what is written, whatever the name."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png but got {text}")
    return path


def keep_input(source: str | os.PathLike[str], *targets: str | os.PathLike[str]) -> None:
    """Refuse to write over the file that is read.

    Raises:
        ValueError: One of the targets is that file, by whatever name.
    """
    for target in filter(os.path.exists, targets):
        if os.path.exists(source) and os.path.samefile(source, target):
            raise ValueError(f"{Path(target)} would overwrite the input; choose another --out.")

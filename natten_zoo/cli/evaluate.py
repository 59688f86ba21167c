"""Measure a model on labeled images: top-1, top-5 and what is mistaken for what, or mean IoU.

DATA is a folder DATA/CLASS/*, or `fashion-mnist` for the installed data set's 10,000 test images
(Debian: apt install dataset-fashion-mnist; elsewhere a folder with its files as they are
published), or `mnist1d` for that data set's 1,000 test sequences, which are generated. Folders are
matched by name with the model's classes (capitals, the encoding of accents, and _ for spaces or /
do not matter), else by ImageNet's synsets (n01440764) or by number, which is an output's. Folders
that are called otherwise are an error; with --by-order they count, sorted, as the model's classes.

Of a UPerNet, a Mask2Former or a OneFormer the IoU of each class, their mean and the share of right
pixels. DATA is then a folder with images/* and masks/*.png, as for `finetune --task semantic`; of
one with parts the images in val/ count. If it has classes.txt, names tell which is which, else
numbers. --reduce-labels: masks number classes from 1, and 0 is none, as ADE20K's do.

  natten-zoo evaluate fashion-mnist
  natten-zoo evaluate ~/Downloads/fashion --model nat_pico_fashion
  natten-zoo evaluate mnist1d --model nat1d_mnist1d
  natten-zoo evaluate imagenet/val --model dinat_mini --json > dinat_mini.json
  natten-zoo evaluate rooms/ --model runs/rooms/best

Exit status: 0 all images were evaluated, 1 some could not be read, 2 nothing was evaluated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import (
    add_csv_argument,
    add_model_argument,
    add_order_argument,
    chosen_model,
    png,
    positive,
    weights_options,
)
from ._text import progress, table, typed

if TYPE_CHECKING:
    from ..data.image_files import Prepares
    from ..data.preprocess import SequencePreprocess
    from ..models import Classifier
    from ..tasks.evaluation import Evaluation


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("data", metavar="DATA", help="a folder, `fashion-mnist` or `mnist1d`")
    add_model_argument(parser)
    add_order_argument(parser)
    add_csv_argument(parser)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument(
        "--confusion", type=png, metavar="PNG", help="draw the confusion matrix (needs matplotlib)"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N of the images, evenly spread"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="images at a time"
    )
    parser.add_argument(
        "--reduce-labels", action="store_true", help="masks: 0 is no class, 1 the first"
    )
    parser.add_argument(
        "--sliding-window", action="store_true", help="UPerNet: by squares of the model's size"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    from ..models import UPerNet, load_pretrained
    from ..models.universal import Universal
    from ..tasks.classification import prepared
    from . import _evaluate_masks

    if args.confusion:
        from ..viz.figures import new_figure

        new_figure(1, 1)  # so that a missing matplotlib shows before the work, not after it
    name = chosen_model(args, aloud=False)
    if args.data == "mnist1d":
        opened = open_sequence_classifier(name, args.variant, **weights_options(args))
        return evaluate_labels(*opened, name, args)
    model: Any = load_pretrained(None, name, model=args.variant, **weights_options(args))
    if isinstance(model, UPerNet | Universal):
        return _evaluate_masks.evaluate(model, name, args)
    return evaluate_labels(model, prepared(model, name), name, args)


def evaluate_labels(
    model: Classifier, preprocess: Prepares, name: str, args: argparse.Namespace
) -> int:
    """Evaluates a classifier and prints; returns the exit status."""
    from ..tasks.classification import output_names
    from ..tasks.evaluation import evaluate
    from ._results import append_measured

    if args.reduce_labels or args.sliding_window:
        raise ValueError("--reduce-labels and --sliding-window are for models of masks.")
    names = output_names(model)
    sources, labels = open_data(args.data, model, args.limit, args.by_order)
    start = time.perf_counter()
    with progress(len(sources), args.batch_size) as bar:
        batches = {"batch_size": args.batch_size, "on_batch": bar.update}
        result = evaluate(model, sources, labels, preprocess, names, **batches)
    seconds = time.perf_counter() - start
    for message in result.failures:
        print(typed(message), file=sys.stderr)
    if not len(result.labels):
        return 2
    append_measured(args, model, name, "top-1", result.top1, len(result.labels), seconds)
    if args.json:
        print(json.dumps({"model": name, "data": args.data, **result.to_dict()}, indent=2))
    else:
        print(report(result))
    if args.confusion:
        from ..viz.figures import confusion_figure, save_figure

        path = save_figure(confusion_figure(result), args.confusion)
        print(f"confusion matrix: {path}", file=sys.stderr)
    return 1 if result.failures else 0


def open_sequence_classifier(
    name: str, variant: str | None = None, **weights: Any
) -> tuple[Classifier, SequencePreprocess]:
    """Loads a model of sequences, and how they are prepared.

    Raises:
        ValueError: If the model takes something else.
    """
    from ..data.preprocess import SequencePreprocess
    from ..models import NAT1D, load_pretrained

    model = load_pretrained(NAT1D, name, model=variant, **weights)
    if model.record is None:
        return model, SequencePreprocess()
    return model, SequencePreprocess.from_record(model.record)


def open_data(
    data: str, model: Classifier, limit: int | None = None, by_order: bool = False
) -> tuple[Sequence[Path | np.ndarray], Sequence[int] | np.ndarray]:
    """Images, `limit` of them evenly spread, and which output of the model is right for each.

    Raises:
        ValueError: If the classes are not the model's.
    """
    sources, labels = _open(data, model, by_order)
    if limit is None or limit >= len(sources):
        return sources, labels
    chosen = np.linspace(0, len(sources) - 1, limit).round().astype(int)
    return [sources[i] for i in chosen], np.asarray(labels)[chosen]


def _open(
    data: str, model: Classifier, by_order: bool
) -> tuple[Sequence[Path | np.ndarray], Sequence[int] | np.ndarray]:
    from ..data.fashion_mnist import CLASSES, FOLDER, fashion_mnist, is_idx_folder
    from ..data.image_folder import ImageFolder
    from ..data.labels import class_names
    from ..data.mnist1d import mnist1d
    from ..data.outputs import outputs

    if data == "mnist1d":
        sequences, labels = mnist1d("test")
        return list(sequences), labels
    names = class_names(model.record.classes if model.record else None)
    count = model.config.num_classes
    if names is not None and len(names) != count:
        names = None
    if data == "fashion-mnist" or is_idx_folder(data, "test"):
        images, labels = fashion_mnist("test", FOLDER if data == "fashion-mnist" else data)
        if count != len(CLASSES):
            raise ValueError(f"fashion-mnist has 10 classes but the model has {count}.")
        of = np.array(outputs(CLASSES, names, count, by_order=by_order, place=data))
        return list(images), of[labels]
    folder = ImageFolder.open(data)
    return folder.files, folder.labels_for(names, count, by_order=by_order)


def report(result: Evaluation) -> str:
    """The figures as text: a line per class, then the whole."""
    present, counts = result.confusion()
    rows = []
    for row, label in enumerate(present):
        part = result.of_class(label)
        if len(part.labels):
            mistaken = _mistaken(result.names, present, counts[row], row)
            shares = [f"{share:.2f} %" for share in part.accuracies().values()]
            rows.append([result.names[label], str(len(part.labels)), *shares, mistaken])
    whole = result.accuracies()
    heads = [name.replace("top", "top-") for name in whole]
    header = ["class", "images", *heads, "most often mistaken for"]
    shares = [f"{head} {share:.2f} %" for head, share in zip(heads, whole.values(), strict=True)]
    text = table(header, rows, f"<>{'>' * len(whole)}<")
    return f"{text}\n\n{len(result.labels)} images: {', '.join(shares)}"


def _mistaken(names: Sequence[str], present: list[int], counts: np.ndarray, own: int) -> str:
    others = counts.copy()
    others[own] = 0
    worst = int(others.argmax())
    return f"{names[present[worst]]} ({others[worst]})" if others[worst] else ""

"""`natten-zoo evaluate` for models that find the class of every pixel."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from ..data.labels import class_names, output_names
from ..data.outputs import outputs
from ..data.scenes import Scenes, open_scenes
from ..models import UPerNet
from ..models.universal import Universal
from ..tasks.mask_evaluation import MaskEvaluation, evaluate_masks
from ._results import append_measured
from ._text import progress, table, typed


def evaluate(model: UPerNet | Universal, name: str, args: argparse.Namespace) -> int:
    """Evaluates and prints; returns the exit status."""
    for option, value in (("--confusion", args.confusion), ("--by-order", args.by_order)):
        if value:
            raise ValueError(f"{option} is for classifiers of whole images.")
    start = time.perf_counter()
    data = open_scenes(args.data, reduce_labels=args.reduce_labels)
    scenes = data.val or data.train
    if args.limit and args.limit < len(scenes):
        scenes = tuple(scenes[i * len(scenes) // args.limit] for i in range(args.limit))
    count = model.config.num_classes
    label_set = None if model.record is None else model.record.classes
    with progress(len(scenes), 1) as bar:
        result = evaluate_masks(
            model,
            scenes,
            output_names(label_set, count),
            reduce_labels=args.reduce_labels,
            sliding_window=args.sliding_window,
            outputs=_outputs(data, label_set, count, args.data),
            each=bar.update,
        )
    seconds = time.perf_counter() - start
    for message in result.failures:
        print(typed(message), file=sys.stderr)
    if not result.images:
        return 2
    append_measured(args, model, name, "mIoU", result.miou, result.images, seconds)
    if args.json:
        print(json.dumps({"model": name, "data": args.data, **result.to_dict()}, indent=2))
    else:
        print(report(result))
    return 1 if result.failures else 0


def report(result: MaskEvaluation) -> str:
    """The figures as text: a line per class that occurs, then the whole."""
    rows = [
        [entry["class"], f"{entry['pixels']:,}", _share(entry["iou"]), _share(entry["accuracy"])]
        for entry in result.classes()
        if entry["iou"] is not None
    ]
    text = table(["class", "pixels", "IoU", "found"], rows, "<>>>")
    whole = f"mIoU {result.miou:.2f} %, pixel accuracy {result.pixel_accuracy:.2f} %"
    return f"{text}\n\n{result.images} images: {whole}"


def _outputs(data: Scenes, label_set: Any, count: int, place: str) -> list[int] | None:
    """Which output each class of the masks is: by name, if data and model tell names."""
    names = class_names(label_set)
    if not data.named or names is None or len(names) != count:
        return None
    return outputs(data.classes, names, count, place=place)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"

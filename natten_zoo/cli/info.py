"""Show a model: architecture, cost, the dilations of every level, license, preprocessing.

For a name of `natten-zoo list` nothing is downloaded. --size counts for other images than the
published ones: any size works, and maps smaller than a window are padded as the weights expect.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from ._arguments import add_variant_argument, positive, weights_options
from ._text import table

if TYPE_CHECKING:
    from ..models import Model
    from ..viz import LayerView

# A record's names of published figures, and what they are called in print.
FIGURES = (
    ("top1", "top-1"),
    ("pq", "PQ"),
    ("ap", "AP"),
    ("miou", "mIoU"),
    ("miou_multi_scale", "mIoU, scales"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "model", metavar="NAME|PATH", help="a name, or a checkpoint's file or folder"
    )
    add_variant_argument(parser)
    parser.add_argument(
        "--size", type=positive, metavar="N", help="count for N x N pixels (or N x N x N voxels)"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what is known of a model."""
    facts = describe(open_model(args.model, args.variant, **weights_options(args)), args.size)
    facts["training"] = training(args.model)
    if facts["training"] and "recipe" in facts["training"]:
        facts["trained_as"] = args.model
    print(json.dumps(facts, indent=2) if args.json else page(facts))
    return 0


def training(folder: str) -> dict[str, Any] | None:
    """What a model's `config.json` says of how it was trained, if it is a folder with one."""
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        return config.get("training")
    except (OSError, ValueError, AttributeError):
        return None


def trained(facts: dict[str, Any]) -> dict[str, str | None]:
    """Lines about a model that was fine-tuned here: what it is, and how good."""
    about, parent = facts["training"], (facts["record"] or {}).get("name")
    recipe = about["recipe"]
    measures = {"val_accuracy": "accuracy", "val_dice": "Dice"}
    measured = [f"{name} {about[key]:.2%}" for key, name in measures.items() if key in about]
    start = f"fine-tuned from {recipe.get('model', parent)}"
    if recipe.get("pretrained") is False:
        start = f"trained from scratch as {recipe.get('model', parent)}"
    steps = f"update {about.get('step')} of {about.get('steps')}, {about.get('seconds')} s"
    return {
        "name": f"{facts['trained_as']}, {start}",
        "trained on": f"{recipe.get('data')}: {steps}",
        "validation": ", ".join(measured) or None,
    }


def open_model(name: str, variant: str | None, **weights: Any) -> Model:
    """A registered model without its weights, any other with them."""
    from ..models import create_model, get_record, load_pretrained
    from ..pretrained.registry import records

    registered = {name for record in records().values() for name in (record.name, record.hub)}
    if name in registered and not variant:
        model = cast("Model", create_model(name))
        model.record = get_record(name)  # which tells of the published weights
        model.eval()
        return model
    return load_pretrained(None, name, model=variant, **weights)


def describe(model: Model, size: int | None) -> dict[str, Any]:
    """Everything that is known, as plain data."""
    import mlx.core as mx

    from ..configs.tasks import TASKS, find_task
    from ..data.preprocess import in_words
    from ..models.cost import count_cost, count_parameters
    from ..viz import view_layers

    record, config, task = model.record, model.config, find_task(model.TASK)
    facts: dict[str, Any] = {
        "architecture": type(model).__name__,
        "config": config.to_dict(),
        "record": dataclasses.asdict(record) if record else None,
        "task": task.name,
        "verb": task.verb or None,
        "preprocessing": (record and in_words(record, task)) or None,
        "parameters": count_parameters(model),
        "levels": [],
    }
    if size and not task.sides:
        sized = ", ".join(sorted({row.inputs for row in TASKS.values() if row.sides}))
        raise ValueError(f"--size counts for {sized} but this model is made for {model.TASK}.")
    size = size or (record.input_size if record else 224)
    if not task.sides or not size:  # nothing says how large an input is
        return facts
    frames = (record and record.frames) or 32
    shape = [frames if axis == "frames" else size for axis in model.AXES]
    image = mx.zeros((1, *shape, config.in_chans))
    return facts | {
        "multiply_adds": count_cost(model, image).macs,
        "size": size,
        "input": " x ".join(map(str, shape)),
        "unit": task.unit,
        "levels": levels(view_layers(model, image)),
    }


def page(facts: dict[str, Any]) -> str:
    """The facts as text."""
    record = facts["record"] or {}
    lines = {
        "name": record.get("name"),
        "architecture": facts["architecture"],
        "task": facts["task"],
        "verb": facts["verb"] and f"natten-zoo {facts['verb']}",
        "parameters": f"{facts['parameters']:,}",
        "multiply-adds": "{multiply_adds:,} for {input} {unit}".format_map(facts)
        if "size" in facts
        else None,
        "classes": facts["config"].get("num_classes"),
    }
    if record:
        places = (record["file"], record["hub"], record["url"], record["mirror"])
        labels = record["classes"]
        whose = "" if record["file"] else " (the authors', not reproduced here)"
        lines |= {
            "labels": labels if isinstance(labels, str) else shorten(", ".join(labels), 100),
            **{
                title: f"{record[name]} %{whose}" if record[name] else None
                for name, title in FIGURES
            },
            "tasks": ", ".join(record["tasks"]),
            "preprocessing": facts["preprocessing"],
            "license": record["license"],
            "source": record["source"],
            "paper": record["paper"],
            "weights": ", ".join(filter(None, places)),
            "note": record["note"],
        }
    if "trained_as" in facts:
        own = trained(facts)
        lines = {"name": own.pop("name"), **own, **{n: v for n, v in lines.items() if n != "name"}}
    known = {name: value for name, value in lines.items() if value}
    width = max(map(len, known))
    text = "\n".join(f"{name:{width}}  {value}" for name, value in known.items())
    if not facts["levels"]:
        return text
    rows = [[*map(str, level.values())] for level in facts["levels"]]
    return f"{text}\n\n{table([*facts['levels'][0]], rows, '<>>>>><')}"


def levels(views: list[LayerView]) -> list[dict[str, Any]]:
    """One row for each level."""
    from ..viz import by_level

    rows = []
    for index, members in enumerate(by_level(views)):
        first = members[0]
        hood = first.layer.neighborhood
        rows.append(
            {
                "level": index,
                "map": " x ".join(map(str, first.size)),
                "channels": first.input.shape[-1],
                "heads": first.layer.num_heads,
                "layers": len(members),
                "window": " x ".join(map(str, hood.kernel_size)),
                "dilations": " ".join(str(v.layer.neighborhood.dilation[-1]) for v in members),
            }
        )
    return rows

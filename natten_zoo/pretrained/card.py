"""The model card that goes with an upload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs.record import Record
from ..configs.tasks import find_task
from ..data.preprocess import in_words
from ..version import __version__
from .protocol import Loadable

if TYPE_CHECKING:  # half a second to import, for who saves a model on this machine
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

SITE = "https://pypi.org/project/natten-zoo"
HUB_LICENSES = ("mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0")
# A record's name of a label set: its name on the Hub, and in print.
DATASETS = {
    "imagenet-1k": ("imagenet-1k", "ImageNet-1k"),
    "imagenet-22k": ("imagenet-22k", "ImageNet-22k"),
    "fashion-mnist": ("fashion_mnist", "Fashion-MNIST"),
    "ade20k": ("scene_parse_150", "ADE20K"),
}


def model_card(model: Loadable, repo_id: str) -> ModelCard:
    """License, source, accuracy, preprocessing and a snippet that loads the model.

    Args:
        model: The model.
        repo_id: The repository that the card is for.
    """
    from huggingface_hub import ModelCard

    record, task = model.current_record(), find_task(model.TASK)
    use = task.use.format(name=type(model).__name__, repo_id=repo_id)
    prepared = record and in_words(record, task)
    body = [
        f"# {repo_id.rpartition('/')[2]}",
        *_description(model, record),
        "## Use",
        "```bash\npip install natten-zoo\n```",
        *([f"```python\n{use}```"] if use else []),
        *(["## Preprocessing", f"{prepared[0].upper()}{prepared[1:]}."] if prepared else []),
    ]
    header = _metadata(model, record, repo_id).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(body) + "\n")


def _metadata(model: Loadable, record: Record | None, repo_id: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    facts: dict[str, Any] = {}
    if record is not None:
        facts = {**_license(record), "base_model": record.hub}
        if record.classes in DATASETS:
            facts["datasets"] = DATASETS[str(record.classes)][0]
            if record.top1 is not None:
                facts |= {"model_name": record.name, "eval_results": [_result(record)]}
    return ModelCardData(
        library_name="mlx",
        tags=["mlx", "natten_zoo", "neighborhood-attention", type(model).__name__.lower()],
        pipeline_tag=find_task(model.TASK).hub or model.TASK,
        **facts,
    )


def _license(record: Record) -> dict[str, str | None]:
    """The license in the Hub's words, which has identifiers of the usual ones only."""
    name = record.license.lower()
    if not name or name in HUB_LICENSES:
        return {"license": name or None}
    return {"license": "other", "license_name": name, "license_link": record.source}


def _result(record: Record) -> EvalResult:
    from huggingface_hub import EvalResult

    dataset, title = DATASETS[str(record.classes)]
    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset,
        dataset_name=title,
        metric_type="accuracy",
        metric_name="top-1 accuracy",
        metric_value=record.top1,
        source_name="the authors" if record.source else None,
        source_url=record.source,
    )


def _description(model: Loadable, record: Record | None) -> list[str]:
    intro = (
        f"A {type(model).__name__}, a model of neighborhood attention for "
        f"{model.TASK.replace('-', ' ')} with "
        f"[MLX](https://github.com/ml-explore/mlx). Written by [natten-zoo]({SITE}) {__version__}."
    )
    if record is None:
        return [intro]
    rows = {
        "Variant": record.name,
        "License": record.license or "see the source",
        "Source of the weights": record.source,
        "Paper": record.paper,
        "Top-1 accuracy": record.top1 and f"{record.top1} % on {record.classes} (as published)",
        "Panoptic quality": record.pq and f"{record.pq} % on {record.classes} (as published)",
        "Average precision": record.ap and f"{record.ap} % on {record.classes} (as published)",
        "Mean IoU": record.miou and f"{record.miou} % on {record.classes} (as published)",
        "Parameters": record.params and f"{record.params:,}",
        "Multiply-adds": record.gmacs
        and f"{record.gmacs:.1f} G at {record.input_size} x {record.input_size}",
        "Classes": str(record.num_classes),
        "Note": record.note,
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return [intro, "\n".join(["| | |", "|---|---|", *lines])]

"""The model card that goes with an upload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs.record import Record
from ..data.preprocess import in_words
from ..version import __version__
from .protocol import Loadable

if TYPE_CHECKING:  # half a second to import, for who saves a model on this machine
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

SITE = "https://pypi.org/project/natten-zoo"
# A record's name of a label set: its name on the Hub, and in print.
DATASETS = {
    "imagenet-1k": ("imagenet-1k", "ImageNet-1k"),
    "imagenet-22k": ("imagenet-22k", "ImageNet-22k"),
    "fashion-mnist": ("fashion_mnist", "Fashion-MNIST"),
    "ade20k": ("scene_parse_150", "ADE20K"),
}

# How a model is used that does not classify images.
_USES = {
    "image-segmentation": """\
from natten_zoo.models import {name}
from natten_zoo.tasks.segmentation import segment

result = segment({name}.from_pretrained("{repo_id}"), "photo.jpg")
result.overlay().save("overlay.png")
print(result.classes())
""",
    "universal-segmentation": """\
from natten_zoo.models import {name}
from natten_zoo.tasks.universal import find_segments

result = find_segments({name}.from_pretrained("{repo_id}"), "photo.jpg", "panoptic")
result.overlay().save("overlay.png")
print(result.describe())
""",
    "video-classification": """\
from natten_zoo.models import {name}
from natten_zoo.tasks.video import classify_video

probabilities = classify_video({name}.from_pretrained("{repo_id}"), "clip.mp4")
print((-probabilities).argsort()[:5])
""",
    "sequence-classification": """\
import numpy as np
from natten_zoo.data import SequencePreprocess
from natten_zoo.models import {name}

model = {name}.from_pretrained("{repo_id}")
prepare = SequencePreprocess.from_record(model.record)
logits = model(prepare(np.sin(np.arange(40)))[None])
""",
    "volume-segmentation": """\
from natten_zoo.models import {name}
from natten_zoo.tasks.volumes import segment_volume

result = segment_volume({name}.from_pretrained("{repo_id}"), "scan.nii.gz")
result.save("mask.nii.gz")
print(result.classes())
""",
}
# The Hub has no name of its own for what these do.
_TAGS = {
    "universal-segmentation": "image-segmentation",
    "sequence-classification": "audio-classification",
    "volume-segmentation": "image-segmentation",
}


def model_card(model: Loadable, repo_id: str) -> ModelCard:
    """License, source, accuracy, preprocessing and a snippet that loads the model.

    Args:
        model: The model.
        repo_id: The repository that the card is for.
    """
    from huggingface_hub import ModelCard

    record = model.current_record()
    body = [
        f"# {repo_id.rpartition('/')[2]}",
        *_description(model, record),
        "## Use",
        f"```bash\npip install natten-zoo\n```\n\n{_snippet(model, repo_id)}",
        *([] if record is None else ["## Preprocessing", _preprocessing(record)]),
    ]
    header = _metadata(model, record, repo_id).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(body) + "\n")


def _metadata(model: Loadable, record: Record | None, repo_id: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    facts: dict[str, Any] = {}
    if record is not None:
        facts = {"license": record.license.lower() or None, "base_model": record.hub}
        if record.classes in DATASETS:
            facts["datasets"] = DATASETS[str(record.classes)][0]
            if record.top1 is not None:
                facts |= {"model_name": record.name, "eval_results": [_result(record)]}
    return ModelCardData(
        library_name="mlx",
        tags=["mlx", "natten_zoo", "neighborhood-attention", type(model).__name__.lower()],
        pipeline_tag=_TAGS.get(model.TASK, model.TASK),
        **facts,
    )


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


def _snippet(model: Loadable, repo_id: str) -> str:
    name = type(model).__name__
    if model.TASK in _USES:
        lines = _USES[model.TASK].format(name=name, repo_id=repo_id)
        return f"```python\n{lines}```"
    return "\n".join(
        [
            "```python",
            "import mlx.core as mx",
            "from natten_zoo.data import Preprocess",
            f"from natten_zoo.models import {name}",
            "",
            f'model = {name}.from_pretrained("{repo_id}")',
            "prepare = Preprocess.from_record(model.record)",
            'logits = model(prepare("photo.jpg")[None])',
            "print(mx.argsort(-logits[0])[:5])",
            "```",
        ]
    )


def _preprocessing(record: Record) -> str:
    text = in_words(record)
    return f"{text[0].upper()}{text[1:]}."

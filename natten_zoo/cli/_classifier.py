"""Opening classifiers, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..data import Preprocess
    from ..models import Model


def open_classifier(name: str, variant: str | None = None) -> tuple[Model, Preprocess]:
    """Loads a model, and how its images are prepared.

    Raises:
        ValueError: If the model is no classifier, or its record is for other images.
    """
    import mlx.core as mx

    from ..data import Preprocess
    from ..models import load_pretrained

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


def best_classes(probabilities: np.ndarray, names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The most probable classes, best first; of equal ones the first.

    Examples:
        >>> best_classes(np.array([0.25, 0.75]), ["cat", "dog"], top=1)
        [{'class': 'dog', 'index': 1, 'probability': 0.75}]
    """
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [
        {"class": names[index], "index": index, "probability": round(float(p), 6)}
        for index, p in zip(order, probabilities[order], strict=True)
    ]

"""Classes of images: what is on a photo, and how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import mlx.core as mx
import numpy as np

from ..data import ImageError, Preprocess
from ..data import labels as label_sets
from ..data.finite import check_finite
from ..data.image_files import read_batches
from ..data.reading import ImageSource
from ..models import Classifier, load_pretrained

Images: TypeAlias = ImageSource | Sequence[ImageSource]
BATCH_SIZE = 32


@dataclass(frozen=True)
class Guess:
    """A class that an image may show.

    Attributes:
        label: The name of the class, `class 7` where none is known.
        index: The output of the model.
        probability: In 0..1.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """What a model says of an image.

    Attributes:
        best: The most probable classes, best first; of equal ones the first.
    """

    best: tuple[Guess, ...]

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.best[0].label

    @property
    def index(self) -> int:
        """Output of the most probable class."""
        return self.best[0].index

    @property
    def probability(self) -> float:
        """Of the most probable class, in 0..1."""
        return self.best[0].probability


@overload  # a text is a sequence, too, but of no images
def classify(  # type: ignore[overload-overlap]
    model: Classifier, images: str | Path, top: int = ..., *, batch_size: int = ...
) -> Classification: ...
@overload
def classify(
    model: Classifier, images: Sequence[ImageSource], top: int = ..., *, batch_size: int = ...
) -> list[Classification]: ...
@overload
def classify(
    model: Classifier, images: Images, top: int = ..., *, batch_size: int = ...
) -> Classification | list[Classification]: ...
def classify(
    model: Classifier, images: Images, top: int = 5, *, batch_size: int = BATCH_SIZE
) -> Classification | list[Classification]:
    """Say what is on an image, or on each of several.

    Images are prepared as the model's weights were published with (its `record`).

    Args:
        model: An image classifier, in evaluation mode.
        images: A path, a Pillow image or an array `[H, W]` or `[H, W, 1 | 3 | 4]` of uint8, as
            [`natten_zoo.data.read_image`][] takes them; or a sequence of those, or an array
            `[N, H, W, C]`.
        top: How many classes to tell, the most probable ones; all, if there are fewer.
        batch_size: Of several images, how many go through the model at a time.

    Returns:
        What the image shows; for a sequence a list, one for each image.

    Raises:
        ImageError: An image cannot be read.
        ValueError: The model does not classify images, or `top` or `batch_size` is not
            positive.

    Examples:
        >>> from natten_zoo import create_model
        >>> model = create_model("nat_pico_fashion", pretrained=True)
        >>> answer = classify(model, np.zeros((28, 28), np.uint8), top=2)
        >>> len(answer.best), answer.label == answer.best[0].label
        (2, True)
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [_answered(a) for a in classify_each(model, images, top, batch_size=batch_size)]
    (answer,) = classify_each(model, [images], top)
    return _answered(answer)


def classify_each(
    model: Classifier,
    images: Sequence[ImageSource],
    top: int = 5,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Classification | ImageError]:
    """What [`classify`][] says of each image, one after the other, as soon as it is known.

    Args:
        model: An image classifier, in evaluation mode.
        images: Paths, Pillow images or arrays. Files are read while the model works.
        top: How many classes to tell.
        names: Of all classes. Default: the record's.
        batch_size: Images at a time.

    Yields:
        A classification, or the error of an image that cannot be read.

    Raises:
        ValueError: As [`classify`][] does; also if there is not one name for each class.
    """
    if top < 1:
        raise ValueError(f"[classify] 'top' must be positive but got {top}.")
    prepare = preparation(model, "[classify] 'model'")
    names, count = output_names(model) if names is None else names, model.config.num_classes
    if len(names) != count:
        raise ValueError(f"[classify] 'names' must name {count} classes but names {len(names)}.")
    for batch in read_batches(images, prepare, batch_size):
        answers: dict[int, Classification | ImageError] = {
            index: ImageError(message) for index, message in batch.failures.items()
        }
        if batch.indices:
            rows = probabilities(model, batch.images)
            for index, row in zip(batch.indices, rows, strict=True):
                answers[index] = Classification(best_classes(row, names, top))
        yield from (answers[index] for index in sorted(answers))


def _answered(answer: Classification | ImageError) -> Classification:
    if isinstance(answer, ImageError):
        raise answer
    return answer


def probabilities(model: Classifier, images: mx.array) -> np.ndarray:
    """The probability of each class, `[N, classes]` in float32, of prepared images.

    Raises:
        ValueError: The model answers with no numbers, as damaged weights do.
    """
    rows = np.array(mx.softmax(model(images).astype(mx.float32), axis=-1))
    check_finite("classify", "probabilities", rows)
    return rows


def best_classes(row: np.ndarray, names: Sequence[str], top: int) -> tuple[Guess, ...]:
    """The most probable classes, best first; of equal ones the first.

    Args:
        row: The probability of each class.
        names: Of the classes.
        top: How many; all, if there are fewer.

    Examples:
        >>> best_classes(np.array([0.25, 0.75]), ["cat", "dog"], top=1)
        (Guess(label='dog', index=1, probability=0.75),)
    """
    order = np.argsort(-row, kind="stable")[:top].tolist()
    return tuple(Guess(names[index], index, float(row[index])) for index in order)


def output_names(model: Classifier) -> tuple[str, ...]:
    """A name for each output of a classifier, `class 7` where none is known."""
    label_set = model.record.classes if model.record else None
    return label_sets.output_names(label_set, model.config.num_classes)


def preparation(model: Classifier, name: str = "'model'") -> Preprocess:
    """How images are prepared for a classifier.

    Args:
        model: The model.
        name: How messages begin: what it is called.

    Raises:
        ValueError: The model is no classifier of images, or its record is for other images.
    """
    if model.TASK != Classifier.TASK:
        raise ValueError(f"{name} must classify images but is made for {model.TASK}.")
    record = model.record
    if not model.config.num_classes or (record is not None and not record.input_size):
        raise ValueError(f"{name} is no classifier of images.")
    prepare = Preprocess() if record is None else Preprocess.from_record(record)
    if model.config.in_chans != prepare.channels:
        raise ValueError(
            f"{name} takes images of {model.config.in_chans} channels but its mean and std are for "
            f"{prepare.channels}."
        )
    return prepare


def open_classifier(
    name: str, variant: str | None = None, **weights: Any
) -> tuple[Classifier, Preprocess]:
    """Loads an image classifier, and how its images are prepared.

    Args:
        name: As in [`natten_zoo.load_pretrained`][].
        variant: The registered model that a bare weights file holds.
        weights: Which of a file's entries to take: keywords of `load_pretrained`.

    Raises:
        ValueError: The model is no classifier of images, or its record is for other images.
    """
    model: Classifier = load_pretrained(None, name, model=variant, **weights)
    return model, prepared(model, name)


def prepared(model: Classifier, name: str) -> Preprocess:
    """How the images of a classifier are prepared, which was tried.

    Raises:
        ValueError: The model is no classifier of images, or its record is for other images.
    """
    prepare = preparation(model, f"model '{name}'")
    model(mx.zeros((1, prepare.size, prepare.size, prepare.channels)))  # lazy: is it taken?
    return prepare

"""How often a classifier is right: over all, per class, and what it mistakes for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..data.finite import check_finite
from ..data.image_files import Prepares, read_batches


@dataclass(frozen=True)
class Evaluation:
    """A classifier's answers to labeled images.

    Attributes:
        names: Name of each output of the classifier.
        labels: The true output of each image, `[N]`.
        ranked: The outputs of each image, the five most probable (all, if fewer), best first,
            `[N, 5]`.
        failures: Messages of images that could not be read; they are not counted.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    ranked: np.ndarray
    failures: list[str] = field(default_factory=list)

    @property
    def top1(self) -> float:
        """Percentage of images whose label is the first answer."""
        return self._percent(1)

    @property
    def top5(self) -> float:
        """Percentage of images whose label is among the first five answers."""
        return self._percent(5)

    def accuracies(self) -> dict[str, float]:
        """`top1` and, where there are more classes than five answers, `top5`."""
        figures = {"top1": self.top1}
        return figures | {"top5": self.top5} if len(self.names) > 5 else figures

    def of_class(self, label: int) -> Evaluation:
        """The same for the images of one class."""
        chosen = self.labels == label
        return Evaluation(self.names, self.labels[chosen], self.ranked[chosen])

    def confusion(self) -> tuple[list[int], np.ndarray]:
        """Counts of true against predicted outputs.

        Returns:
            The outputs that occur, sorted, and `[true, predicted]` counts of those.
        """
        predicted = self.ranked[:, 0]
        present = np.unique(np.concatenate([self.labels, predicted]))
        counts = np.zeros((len(present), len(present)), np.int64)
        rows, columns = np.searchsorted(present, self.labels), np.searchsorted(present, predicted)
        np.add.at(counts, (rows, columns), 1)
        return present.tolist(), counts

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        classes = []
        for label in np.unique(self.labels).tolist():
            part = self.of_class(label)
            numbers = {"images": len(part.labels), **part.accuracies()}
            classes.append({"class": self.names[label], "index": label, **numbers})
        return {
            "images": len(self.labels),
            **self.accuracies(),
            "classes": classes,
            "failures": self.failures,
        }

    def _percent(self, answers: int) -> float:
        right = (self.ranked[:, :answers] == self.labels[:, None]).any(axis=1)
        return round(100 * float(right.mean()), 4) if len(right) else 0.0


def evaluate(
    model: nn.Module,
    sources: Sequence[Path | np.ndarray],
    labels: Sequence[int] | np.ndarray,
    preprocess: Prepares,
    names: Sequence[str],
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], Any] = lambda images: None,
) -> Evaluation:
    """Classifies labeled images.

    Args:
        model: Images (or sequences) to logits, in evaluation mode.
        sources: Image files or arrays.
        labels: The output of `model` that is right for each.
        preprocess: How images are prepared.
        names: Name of each output.
        batch_size: Images at a time.
        on_batch: Called after every batch with its number of images.

    Raises:
        ValueError: `batch_size` is not positive, or the model answers with no numbers.
    """
    kept: list[int] = []
    ranked: list[np.ndarray] = []
    failures: list[str] = []
    for batch in read_batches(sources, preprocess, batch_size):
        if batch.indices:
            logits = model(batch.images).astype(mx.float32)
            check_finite("evaluate", "logits", np.array(logits))
            ranked.append(np.array(mx.argsort(-logits, axis=-1)[:, :5]))
        kept += batch.indices
        failures += batch.failures.values()
        on_batch(len(batch.indices) + len(batch.failures))
    answers = np.concatenate(ranked) if ranked else np.zeros((0, 5), np.int64)
    return Evaluation(tuple(names), np.asarray(labels)[kept], answers.astype(np.int64), failures)

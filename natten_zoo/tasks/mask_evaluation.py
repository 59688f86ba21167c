"""How well a model finds the class of every pixel: IoU of each class, over many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.reading import ImageError
from ..data.scenes import IGNORE, Scene, read_mask
from ..models import UPerNet
from ..models.universal import Universal
from .segmentation import Segmentation, segment
from .universal import each_image


@dataclass(frozen=True)
class MaskEvaluation:
    """Pixels of many images, counted by what they are and what they were taken for.

    Attributes:
        names: Name of each class.
        counts: Pixels `[true, found]`.
        images: How many images they are of.
        failures: Messages of images that could not be read; they are not counted.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    images: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def miou(self) -> float:
        """Mean percentage of `ious` over the classes that occur, in masks or in answers."""
        ious = self.ious()
        return float(np.nanmean(ious)) if not np.isnan(ious).all() else 0.0

    @property
    def pixel_accuracy(self) -> float:
        """Percentage of the pixels whose class was found."""
        return 100 * float(np.trace(self.counts)) / max(1, int(self.counts.sum()))

    def ious(self) -> np.ndarray:
        r"""$100 \frac{|A \cap B|}{|A \cup B|}$ of each class; NaN of those that don't occur."""
        both = np.diag(self.counts).astype(np.float64)
        return _percent(both, self.counts.sum(axis=0) + self.counts.sum(axis=1) - both)

    def recalls(self) -> np.ndarray:
        """Percentage of the pixels of each class that were found; NaN where there are none."""
        return _percent(np.diag(self.counts), self.counts.sum(axis=1))

    def classes(self) -> list[dict[str, Any]]:
        """The figures of each class; None for those that can't be told."""
        columns = zip(self.names, self.counts.sum(axis=1), self.ious(), self.recalls(), strict=True)
        return [
            {"class": n, "index": i, "pixels": int(p), "iou": _number(u), "accuracy": _number(r)}
            for i, (n, p, u, r) in enumerate(columns)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "images": self.images,
            "pixels": int(self.counts.sum()),
            "miou": round(self.miou, 4),
            "pixel_accuracy": round(self.pixel_accuracy, 4),
            "classes": self.classes(),
            "failures": self.failures,
        }


def evaluate_masks(
    model: UPerNet | Universal,
    scenes: Sequence[Scene],
    names: Sequence[str],
    *,
    reduce_labels: bool = False,
    sliding_window: bool = False,
    outputs: Sequence[int] | None = None,
    each: Callable[[], Any] = lambda: None,
) -> MaskEvaluation:
    """Segment images and compare with their masks, pixel by pixel, at the images' own size.

    Args:
        model: In evaluation mode.
        scenes: Images and masks.
        names: Name of each output of the model.
        reduce_labels: Masks number classes from 1, and 0 is no class.
        sliding_window: Let a UPerNet look at squares of its input size.
        outputs: Which output of the model each class of the masks is. Default: the same number.
        each: Called after each image.

    Raises:
        ValueError: A mask has a class that the model has not, or `sliding_window` is asked of
            another model than a UPerNet.

    Examples:
        >>> counts = np.array([[6, 2], [0, 8]])
        >>> result = MaskEvaluation(("sky", "sea"), counts)
        >>> round(result.miou, 1), result.pixel_accuracy
        (77.5, 87.5)
    """
    if sliding_window and not isinstance(model, UPerNet):
        raise ValueError(
            "[evaluate_masks] 'sliding_window' is for a UPerNet but 'model' is a "
            f"{type(model).__name__}."
        )
    count = len(names)
    rows = np.full(256, -1)  # of the counts, by the values of masks
    places = range(count) if outputs is None else outputs
    rows[: len(places)], rows[IGNORE] = places, count
    total, failures = np.zeros((count + 1, count), np.int64), []
    for scene in scenes:
        try:
            mask = read_mask(scene.mask, reduce_labels)
            found = _find(model, scene, sliding_window)
            total += _counts(rows[mask], found, count, scene)
        except ImageError as error:
            failures.append(str(error))
        each()
    done = len(scenes) - len(failures)
    return MaskEvaluation(tuple(names), total[:count], done, failures)


def _find(model: UPerNet | Universal, scene: Scene, sliding_window: bool) -> np.ndarray:
    """The class that the model finds for each pixel of an image."""
    if isinstance(model, UPerNet):
        return segment(model, scene.image, sliding_window=sliding_window).mask
    [(_, found)] = each_image(model, [scene.image], "semantic")
    if isinstance(found, ImageError):
        raise found
    assert isinstance(found, Segmentation)
    return found.mask


def _counts(truth: np.ndarray, found: np.ndarray, count: int, scene: Scene) -> np.ndarray:
    """Pixels `[count + 1, count]`, those of no class in the last row."""
    if truth.shape != found.shape:
        raise ImageError(
            f"{scene.mask} must have the {found.shape[1]} x {found.shape[0]} pixels of its image "
            f"but is {truth.shape[1]} x {truth.shape[0]}"
        )
    if (truth < 0).any():
        raise ValueError(
            f"[evaluate_masks] {scene.mask} must have classes of the model's {count}, from 0 "
            f"({IGNORE} is for pixels of no class), but has others."
        )
    pairs = np.bincount((truth * count + found).ravel(), minlength=(count + 1) * count)
    return pairs.reshape(count + 1, count)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.full(len(whole), np.nan)
    np.divide(100 * part, whole, out=result, where=whole > 0)
    return result


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)

"""How much images that a model made are like real ones, as a classifier sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..models import Classifier


class Seen(NamedTuple):
    """What a classifier sees of images.

    Attributes:
        features: `[count, channels]`, its classifier's input.
        classes: `[count]`, what it takes them for.
    """

    features: np.ndarray
    classes: np.ndarray

    def agreement(self, labels: np.ndarray) -> float:
        """The share of the images that are taken for what they are meant to be."""
        return float((self.classes == labels).mean())


def look(classifier: Classifier, pixels: np.ndarray, batch_size: int = 250) -> Seen:
    """Let a classifier look at images of its own input size.

    Args:
        classifier: In evaluation mode, with a record, which tells how images are prepared.
        pixels: `[count, height, width, channels]` of uint8.
        batch_size: Images at a time.

    Raises:
        ValueError: They are of another size, or it has no record.
    """
    record = classifier.record
    if record is None:
        raise ValueError(
            "[look] 'classifier' must have a record, which says how images are prepared."
        )
    wanted = (record.input_size, record.input_size, len(record.mean))
    mean, std = mx.array(record.mean), mx.array(record.std)
    if pixels.ndim != 4 or pixels.shape[1:] != wanted:
        raise ValueError(f"[look] 'pixels' must be [count, {', '.join(map(str, wanted))}] but got "
                         f"{list(pixels.shape)}.")  # fmt: skip

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(pixels), batch_size):
            x = mx.array(pixels[start : start + batch_size]).astype(mx.float32) / 255
            features = classifier.forward_features((x - mean) / std)
            yield np.array(features), np.array(classifier.head(features).argmax(-1))

    features, classes = zip(*parts(), strict=True)
    return Seen(np.concatenate(features), np.concatenate(classes))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    r"""The distance of two sets of features, each taken for a normal distribution.

    $$
    |\mu_1 - \mu_2|^2 + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\right)
    $$

    With Inception's features this is the FID; with others its figures are no FIDs and compare only
    with each other. Source: Heusel et al., https://arxiv.org/abs/1706.08500.

    Args:
        one: `[count, channels]`.
        other: `[count, channels]`, as many channels.

    Examples:
        >>> random = np.random.default_rng(0)
        >>> one, other = random.normal(size=(2, 20_000, 4))
        >>> round(frechet_distance(one, other + 1), 1)
        4.0
    """
    one, other = (np.asarray(part, np.float64) for part in (one, other))
    apart = np.square(one.mean(0) - other.mean(0)).sum()
    first, second = (np.cov(part, rowvar=False) for part in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # The product of both has the eigenvalues of this, which is symmetric.
    mixed = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * mixed)

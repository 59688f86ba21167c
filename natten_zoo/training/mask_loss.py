"""The loss that Mask2Former and OneFormer were trained with: queries are matched to masks first.

Cheng et al., https://arxiv.org/abs/2112.01527: every target gets the query that fits it best, no
two the same one; the others should say "nothing". Masks are compared at random points, more of them
where the model is in doubt. Matching needs SciPy, the extra `segmentation`. OneFormer's additional
loss between queries and texts needs the encoder of texts, which is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..models.universal_queries import Masks
from ..ops.deformable import sample


class MaskTargets(NamedTuple):
    """The things and the stuff in one image.

    Attributes:
        labels: Their classes, integers `[N]`.
        masks: Where they are, `[N, H, W]` of zeros and ones, of any size.
    """

    labels: mx.array
    masks: mx.array


class Pairs(NamedTuple):
    """Which query is for which target: integers `[N]` each."""

    queries: mx.array
    targets: mx.array


@dataclass(frozen=True)
class MaskLoss:
    """The weighted sum of three losses, over what the queries found before and after each layer.

    Args:
        class_weight: Of the cross-entropy of classes.
        mask_weight: Of the binary cross-entropy of masks.
        dice_weight: Of the Dice loss of masks.
        nothing_weight: Of a query that should say "nothing", in the cross-entropy.
        points: At which masks are compared.
        oversample: Among so many times as many points those in doubt are chosen.
        in_doubt: Part of the points that are chosen so.

    Examples:
        >>> found = Masks(mx.zeros((1, 4, 3)), mx.zeros((1, 8, 8, 4)))
        >>> targets = [MaskTargets(mx.array([1]), mx.ones((1, 32, 32)))]
        >>> loss = MaskLoss(points=64)([found], targets)
        >>> loss.shape
        ()
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    nothing_weight: float = 0.1
    points: int = 12544
    oversample: float = 3.0
    in_doubt: float = 0.75

    def __call__(self, found: Sequence[Masks], targets: Sequence[MaskTargets]) -> mx.array:
        """The loss of a batch.

        Args:
            found: What `model.all_masks(x, task)` returns.
            targets: Of each image.

        Raises:
            ImportError: SciPy is not installed.
            ValueError: There are not as many targets as images, or more in one than queries.
        """
        batch, queries = found[0].classes.shape[:2]
        if len(targets) != batch or any(len(each.labels) > queries for each in targets):
            raise ValueError(
                f"[MaskLoss] 'targets' must be those of {batch} images, {queries} or fewer each, "
                f"but got {[len(each.labels) for each in targets]}."
            )
        return sum(
            (self.of_layer(each, targets) for each in found[1:]), self.of_layer(found[0], targets)
        )

    def of_layer(self, found: Masks, targets: Sequence[MaskTargets]) -> mx.array:
        """The loss of what the queries found at one place."""
        count = max(1, sum(len(each.labels) for each in targets))
        classes, masks = found.classes.astype(mx.float32), found.masks.astype(mx.float32)
        wanted = np.full(classes.shape[:2], classes.shape[-1] - 1)
        loss = mx.array(0.0)
        for image, each in enumerate(targets):
            if not len(each.labels):
                continue
            pairs = self.match(classes[image], masks[image], each)
            wanted[image, np.array(pairs.queries)] = np.array(each.labels[pairs.targets])
            chosen = masks[image].transpose(2, 0, 1)[pairs.queries]  # [N, h, w]
            truth = each.masks.astype(mx.float32)[pairs.targets]
            places = self.places_in_doubt(chosen)
            logits, values = at_points(chosen, places), mx.stop_gradient(at_points(truth, places))
            loss = loss + self.mask_weight * mask_cross_entropy(logits, values).sum() / count
            loss = loss + self.dice_weight * dice_loss(logits, values).sum() / count
        labels = mx.array(wanted)
        weights = mx.where(labels == classes.shape[-1] - 1, self.nothing_weight, 1.0)
        entropy = nn.losses.cross_entropy(classes, labels) * weights
        return loss + self.class_weight * entropy.sum() / weights.sum()

    def match(self, classes: mx.array, masks: mx.array, targets: MaskTargets) -> Pairs:
        """The assignment of queries to the targets of an image that costs least.

        Args:
            classes: Logits `[queries, classes + 1]`.
            masks: Logits `[h, w, queries]`.
            targets: Of the image.
        """
        places = mx.random.uniform(shape=(1, self.points, 2))
        logits = at_points(mx.stop_gradient(masks).transpose(2, 0, 1), places)  # [Q, K]
        truth = at_points(targets.masks.astype(mx.float32), places)  # [N, K]
        probabilities = mx.softmax(mx.stop_gradient(classes), axis=-1)[:, targets.labels]
        pairwise = logits[:, None], truth[None]
        cost = (
            self.mask_weight * mask_cross_entropy(*pairwise)
            + self.dice_weight * dice_loss(*pairwise)
            - self.class_weight * probabilities
        )
        return assign(np.array(cost))

    def places_in_doubt(self, masks: mx.array) -> mx.array:
        """Points `[N, points, 2]` for masks `[N, h, w]`: most where logits are near zero."""
        count = len(masks)
        doubted = int(self.in_doubt * self.points)
        places = mx.random.uniform(shape=(count, int(self.oversample * self.points), 2))
        sureness = mx.abs(at_points(mx.stop_gradient(masks), places))
        order = mx.argsort(sureness, axis=-1)[:, :doubted]
        chosen = mx.take_along_axis(places, order[..., None], axis=1)
        others = mx.random.uniform(shape=(count, self.points - doubted, 2))
        return mx.concatenate([chosen, others], axis=1)


def assign(cost: np.ndarray) -> Pairs:
    """The pairs of rows and columns of a matrix whose sum is least, one for each column.

    Raises:
        ImportError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("matching needs SciPy: pip install 'natten-zoo[segmentation]'") from error
    rows, columns = linear_sum_assignment(cost)
    return Pairs(mx.array(rows), mx.array(columns))


def at_points(masks: mx.array, places: mx.array) -> mx.array:
    """Maps between their pixels, zeros around them.

    Args:
        masks: `[N, h, w]`.
        places: `[N, K, 2]`, or `[1, K, 2]` for all, x before y as fractions of width and height.

    Returns:
        `[N, K]`.

    Examples:
        >>> at_points(mx.array([[[0.0, 4.0]]]), mx.array([[[0.25, 0.5], [0.5, 0.5]]])).tolist()
        [[0.0, 2.0]]
    """
    count, height, width = masks.shape
    points = places * mx.array([width, height]) - 0.5
    points = mx.broadcast_to(points, (count, *points.shape[1:]))[:, :, None, None]
    ones = mx.ones(points.shape[:-1])
    return sample(masks[..., None, None], points, ones)[..., 0, 0]


def mask_cross_entropy(logits: mx.array, truth: mx.array) -> mx.array:
    """Mean binary cross-entropy over the points, the last axis."""
    return (nn.softplus(logits) - logits * truth).mean(axis=-1)


def dice_loss(logits: mx.array, truth: mx.array) -> mx.array:
    r"""$1 - \frac{2 \sum_k p_k t_k + 1}{\sum_k p_k + \sum_k t_k + 1}$ over the last axis."""
    shares = mx.sigmoid(logits)
    both = (shares * truth).sum(axis=-1)
    return 1 - (2 * both + 1) / (shares.sum(axis=-1) + truth.sum(axis=-1) + 1)

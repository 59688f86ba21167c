"""From what the queries found to segments, as Hugging Face's processors do it.

Their rules differ from [the authors'][natten_zoo.tasks.mask_rules], and between the models:
OneFormer's masks are used as they are, at a quarter of the image's size; Mask2Former's are first
resized to 384 x 384, whatever the image's shape. Numbers of segments, and what is listed twice, are
theirs too, so that results can be compared. Of equal scores the earlier query's counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..layers.resize import resize_bilinear
from ..models.universal_queries import Masks
from .mask_rules import (
    Frame,
    Segment,
    Size,
    bands,
    best_pairs,
    claim,
    confident,
)
from .rle import runs_of

# To which Mask2Former's masks are resized, "for all models".
SQUARE = (384, 384)


def semantic(found: Masks, size: Size | None = None, *, square: bool = False) -> np.ndarray:
    """The most probable class of each pixel, `[H, W]`.

    Args:
        found: Of one image.
        size: Of the result. Default: of the masks.
        square: As of a Mask2Former.
    """
    masks = _squared(found.masks) if square else found.masks
    classes = mx.softmax(found.classes[0].astype(mx.float32), axis=-1)[:, :-1]
    scores = mx.sigmoid(masks.astype(mx.float32)) @ classes
    result = np.empty(size or masks.shape[1:3], np.int32)
    for columns, values in bands(scores, _frame(scores, size)):
        result[:, columns] = np.array(mx.argmax(values, axis=-1)).T
    return result


def panoptic(
    found: Masks,
    size: Size | None = None,
    *,
    square: bool = False,
    stuff: Sequence[int] = (),
    keep: float = 0.5,
    inside: float = 0.5,
    overlap: float = 0.8,
) -> tuple[np.ndarray, list[Segment]]:
    """Every pixel to one segment or none.

    Args:
        found: Of one image.
        size: Of the result. Default: of the masks.
        square: As of a Mask2Former.
        stuff: Classes whose segments become one; each piece is listed, with the same number.
        keep: A query's score must be larger.
        inside: From which product of probability and score a pixel counts to a mask's area.
        overlap: Of that area, a larger part must be left to the query.

    Returns:
        The number of each pixel's segment, `[H, W]`, 0 for none, and all -1 if there is no
        segment; and the segments.
    """
    chosen, labels, scores = confident(found.classes, keep)
    masks = _squared(found.masks) if square else found.masks
    values = mx.sigmoid(masks.astype(mx.float32)[..., mx.array(chosen, mx.int32)])
    return _segments(values, labels, scores, size, set(stuff), inside, overlap)


def instances(
    found: Masks,
    size: Size | None = None,
    *,
    things: Sequence[int] | None = None,
    keep: float = 0.5,
    inside: float = 0.5,
    overlap: float = 0.8,
) -> tuple[np.ndarray, list[Segment]]:
    """OneFormer's instances: pairs of a query and a class, by the panoptic rule on mask logits.

    Args:
        found: Of one image.
        size: Of the result. Default: of the masks.
        things: Classes to look for. Default: all.
        keep: A pair's score must be larger.
        inside: As in [`panoptic`][], of logits, which are no probabilities.
        overlap: As in [`panoptic`][].
    """
    queries, labels, scores = best_pairs(found.classes)
    wanted = scores > keep
    if things is not None:
        wanted &= np.isin(labels, list(things))
    values = found.masks.astype(mx.float32)[..., mx.array(queries[wanted], mx.int32)]
    return _segments(values, labels[wanted], scores[wanted], size, set(), inside, overlap)


def square_instances(
    found: Masks, size: Size | None = None, *, keep: float = 0.5
) -> tuple[np.ndarray, list[Segment]]:
    """Mask2Former's instances: pairs of a query and a class; the later ones lie on top.

    Args:
        found: Of one image.
        size: Of the result. Default: of the masks, 384 x 384.
        keep: The least product of a pair's score and the mask's mean probability inside of it.

    Returns:
        The number of each pixel's segment from 0, `[H, W]`, -1 for none; and the segments.
    """
    queries, labels, scores = best_pairs(found.classes)
    rows, columns = (_nearest(n, new) for n, new in zip(SQUARE, size or SQUARE, strict=True))
    result, segments = np.full(size or SQUARE, -1, np.int32), list[Segment]()
    for query, label, score in zip(queries.tolist(), labels.tolist(), scores.tolist(), strict=True):
        logits = np.array(_squared(found.masks[..., query : query + 1]))[0, :, :, 0]
        mask = logits > 0
        score *= float((mask / (1 + np.exp(-logits))).sum() / (mask.sum() + 1e-6))
        mask = mask[np.ix_(rows, columns)]
        if mask.any() and score >= keep:
            number, area = len(segments), int(mask.sum())
            result[mask] = number
            segments.append(Segment(number, label, score, True, area, runs_of(mask)))
    return result, segments


def _segments(
    values: mx.array,
    labels: np.ndarray,
    scores: np.ndarray,
    size: Size | None,
    stuff: set[int],
    inside: float,
    overlap: float,
) -> tuple[np.ndarray, list[Segment]]:
    frame = _frame(values, size)
    if not len(labels):
        return np.full(frame.size, -1, np.int32), []
    claims = claim(
        bands(values, frame), scores, frame.size, lambda _, products: products >= inside, mx.array
    )
    owned = np.bincount(claims.owner.ravel(), minlength=len(labels))
    ids, number, fused = np.zeros(len(labels), np.int32), 0, dict[int, int]()
    segments: list[Segment] = []
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        if not owned[query] or not claims.wanted[query]:
            continue
        if not owned[query] / claims.wanted[query] > overlap:
            continue
        # After a piece of stuff, numbers go on from its own, even if they are taken.
        number = fused.get(label, number + 1)
        if label in stuff:
            fused[label] = number
        ids[query] = number
        segments.append(Segment(number, label, score, label not in stuff, int(owned[query])))
    return ids[claims.owner], segments


def _frame(values: mx.array, size: Size | None) -> Frame:
    own = values.shape[1], values.shape[2]
    return Frame(own, own, size or own)


def _squared(masks: mx.array) -> mx.array:
    return resize_bilinear(masks.astype(mx.float32), SQUARE)


def _nearest(old: int, new: int) -> np.ndarray:
    """Where torch finds the nearest of `old` places for `new` ones."""
    places: np.ndarray = np.floor(np.arange(new) * np.float32(old / new))
    return places.astype(int)

"""From what the queries found to segments, by the rules of Mask2Former's and OneFormer's authors.

Masks are resized to the image that the model saw, its padding is cut off, and they are resized to
the image; a few columns of it at a time, so that memory does not grow with the queries. Ties are
broken by order: of equal scores or probabilities the earlier query's counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..layers.resize import resize_twice
from ..models.universal_queries import Masks
from .rle import Runs

# Masks at the image's size are made in bands of at most this many numbers: 4 MiB in float32,
# which caches hold.
BAND = 2**20
Size = tuple[int, int]


class Frame(NamedTuple):
    """The sizes that masks go through, height and width each.

    Attributes:
        padded: Of the image with the padding that the model saw.
        kept: Of the image in it.
        size: Of the masks that are wanted.
    """

    padded: Size
    kept: Size
    size: Size


@dataclass(frozen=True)
class Segment:
    """A part of an image that is one thing, or all of one kind of stuff.

    Attributes:
        id: Its number in the map of segments; of instances, which overlap, its rank.
        label: Index of its class.
        score: Between 0 and 1.
        is_thing: Whether it is counted.
        area: Pixels.
        runs: Its mask; None if a map has it.
    """

    id: int
    label: int
    score: float
    is_thing: bool
    area: int
    runs: Runs | None = None


class Claims(NamedTuple):
    """Which query each pixel belongs to.

    Attributes:
        owner: Its place among the queries that were asked, `[H, W]`.
        sure: Whether its mask's probability is a half or more there, `[H, W]`.
        wanted: Pixels whose value is as large as needed, per query.
    """

    owner: np.ndarray
    sure: np.ndarray
    wanted: np.ndarray


def semantic(found: Masks, frame: Frame) -> np.ndarray:
    """The most probable class of each pixel, `[H, W]`: the classes of all masks that cover it.

    Args:
        found: Of one image: `[1, queries, classes + 1]`, `[1, h, w, queries]`.
        frame: The sizes.
    """
    classes = mx.softmax(found.classes[0].astype(mx.float32), axis=-1)[:, :-1]
    result = np.empty(frame.size, np.int32)
    for columns, values in bands(found.masks, frame, classes.shape[1]):
        result[:, columns] = np.array(mx.argmax(mx.sigmoid(values) @ classes, axis=-1)).T
    return result


def panoptic(
    found: Masks,
    frame: Frame,
    things: Sequence[int],
    *,
    keep: float = 0.5,
    overlap: float = 0.8,
) -> tuple[np.ndarray, list[Segment]]:
    """Every pixel to one segment or none.

    A query counts if its best class is not "nothing" and has a score above `keep`. A pixel
    belongs to the query whose mask's probability times score is largest. A query is dropped if
    less than `overlap` of its own mask was left to it; the others keep the pixels that are theirs
    and in their masks.

    Args:
        found: Of one image.
        frame: The sizes.
        things: Indices of the classes that are counted; the segments of others become one.
        keep: Least score.
        overlap: Least part of a mask.

    Returns:
        The number of each pixel's segment, `[H, W]`, 0 for none; and the segments.
    """
    chosen, labels, scores = confident(found.classes, keep)
    counted = set(things)
    if not len(chosen):
        return np.zeros(frame.size, np.int32), []
    claims = claim(bands(found.masks[..., mx.array(chosen)], frame), scores, frame.size, _sure)
    queries = len(chosen)
    owned = np.bincount(claims.owner.ravel(), minlength=queries)
    left = np.bincount(claims.owner[claims.sure], minlength=queries)
    ids, segments, stuff = np.zeros(queries, np.int32), dict[int, Segment](), dict[int, int]()
    for query, label in enumerate(labels.tolist()):
        if not left[query] or owned[query] / claims.wanted[query] < overlap:
            continue
        ids[query] = stuff.get(label, len(segments) + 1)
        if label not in counted:
            stuff[label] = ids[query]
        first = segments.get(ids[query])
        score = first.score if first else float(scores[query])
        area = int(left[query]) + (first.area if first else 0)
        segments[ids[query]] = Segment(int(ids[query]), label, score, label in counted, area)
    return np.where(claims.sure, ids[claims.owner], 0), list(segments.values())


def instances(
    found: Masks,
    frame: Frame,
    *,
    things: Sequence[int] | None = None,
    top: int | None = None,
    keep: float = 0.0,
) -> list[Segment]:
    """The best pairs of a query and a class, the best first; masks may overlap.

    Args:
        found: Of one image.
        frame: The sizes.
        things: Indices of the classes to look for. Default: all.
        top: How many pairs to look at. Default: as many as there are queries.
        keep: A class' score must be larger.

    Returns:
        Segments whose score is the class' times the mask's mean probability inside of it.
    """
    queries, labels, scores = best_pairs(found.classes, top)
    wanted = scores > keep
    if things is not None:
        wanted &= np.isin(labels, list(things))
    queries, labels, scores = queries[wanted], labels[wanted], scores[wanted]
    if not len(queries):
        return []
    chosen, place = np.unique(queries, return_inverse=True)  # one mask may have several classes
    runs = [Runs(frame.size[0]) for _ in chosen]
    sums = np.zeros(len(chosen))
    for _, values in bands(found.masks[..., mx.array(chosen)], frame):
        inside = values > 0
        sums += np.array((mx.sigmoid(values) * inside).sum(axis=(0, 1)))
        for index, columns in enumerate(np.array(inside.transpose(2, 1, 0))):
            runs[index].add(columns)
    means = sums / (np.array([mask.area for mask in runs]) + 1e-6)
    order = np.argsort(-scores * means[place], kind="stable").tolist()
    return [
        Segment(
            rank,
            int(labels[pair]),
            float(scores[pair] * means[place[pair]]),
            True,
            runs[place[pair]].area,
            runs[place[pair]],
        )
        for rank, pair in enumerate(order, 1)
    ]


def confident(classes: mx.array, keep: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries whose best class is not "nothing" and has a score above `keep`, in their order.

    Returns:
        Their places, classes and scores.
    """
    probabilities = np.array(mx.softmax(classes[0].astype(mx.float32), axis=-1))
    labels, scores = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
    chosen = np.flatnonzero((labels < classes.shape[-1] - 1) & (scores > keep))
    return chosen, labels[chosen], scores[chosen]


def best_pairs(
    classes: mx.array, top: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The queries, classes and scores of the best pairs of both, the best first."""
    probabilities = np.array(mx.softmax(classes[0].astype(mx.float32), axis=-1))[:, :-1]
    count = len(probabilities) if top is None else top
    order = np.argsort(-probabilities.ravel(), kind="stable")[:count]
    queries, labels = np.divmod(order, probabilities.shape[1])
    return queries, labels, probabilities.ravel()[order]


def bands(masks: mx.array, frame: Frame, classes: int = 0) -> Iterator[tuple[slice, mx.array]]:
    """Mask logits `[1, h, w, queries]` at the size that is wanted, a few columns at a time.

    Args:
        masks: The logits.
        frame: The sizes.
        classes: Numbers per pixel that the caller will make of a band, if more than of queries.

    Yields:
        Which columns, and `[columns, H, queries]` in float32.
    """
    height, width = frame.size
    turned = masks[0].astype(mx.float32).swapaxes(0, 1)  # [w, h, Q]
    step = max(1, BAND // (height * max(masks.shape[-1], classes)))
    (rows, columns), (kept_rows, kept_columns) = frame.padded, frame.kept
    for start in range(0, width, step):
        stop = min(start + step, width)
        band = resize_twice(turned, 0, (columns, kept_columns, width), start, stop)
        yield slice(start, stop), resize_twice(band, 1, (rows, kept_rows, height))


def claim(
    parts: Iterator[tuple[slice, mx.array]],
    scores: np.ndarray,
    size: Size,
    enough: Callable[[mx.array, mx.array], mx.array],
    share: Callable[[mx.array], mx.array] = mx.sigmoid,
) -> Claims:
    """Give each pixel to the query with the largest product of probability and score.

    Args:
        parts: Values as [`bands`][] makes them.
        scores: Of the queries.
        size: Height and width.
        enough: Of probabilities and of their products with the scores, which count as wanted.
        share: Makes probabilities of the parts' values.
    """
    owner, sure = np.empty(size, np.int32), np.empty(size, bool)
    wanted = np.zeros(len(scores), np.int64)
    weights = mx.array(scores)
    for columns, values in parts:
        shares = share(values)
        products = shares * weights
        best = mx.argmax(products, axis=-1)
        wants = enough(shares, products)
        wanted += np.array(wants.sum(axis=(0, 1)))
        owner[:, columns] = np.array(best).T
        mine = mx.take_along_axis(shares, best[..., None], axis=-1)[..., 0]
        sure[:, columns] = np.array(mine >= 0.5).T
    return Claims(owner, sure, wanted)


def _sure(shares: mx.array, products: mx.array) -> mx.array:
    return shares >= 0.5

"""Training on images with masks: random crops, losses that know no-class pixels, and mean IoU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..configs.record import Record
from ..data import Preprocess, read_image
from ..data.arrays import Batch
from ..data.scenes import IGNORE, Scene, Scenes, open_scenes, read_mask
from ..layers.resize import resize_bilinear
from ..models import UPerNet
from ..models.universal import Universal
from ..tasks.mask_evaluation import MaskEvaluation, evaluate_masks
from .augment import Augment
from .color import jitter_color
from .config import Recipe
from .loop import Trainer
from .mask_loss import MaskLoss, MaskTargets

# What a recipe may ask for classes of whole images only.
OFF = {"rand_augment": 0, "erase": 0, "mixup": 0, "cutmix": 0, "smoothing": 0}
# The auxiliary head's part of a UPerNet's loss, as published.
AUXILIARY = 0.4
# Batches that are decoded ahead.
AHEAD = 2


class Pair(NamedTuple):
    """An image and its mask, of the same size."""

    image: Image.Image
    mask: Image.Image


class SceneSource:
    """Random crops of images and their masks to train on; images to validate on whole.

    Files are decoded ahead by threads; what is random is drawn from MLX's random state, which
    checkpoints hold, when a batch is asked for.

    Args:
        scenes: The data set.
        preprocess: What the model sees: the side of crops and the short side of whole images.
        recipe: Its crop, scales, flip and workers.
    """

    def __init__(self, scenes: Scenes, preprocess: Preprocess, recipe: Recipe) -> None:
        self.scenes, self.preprocess, self.recipe = scenes, preprocess, recipe
        self.classes, self.fingerprint = scenes.classes, scenes.fingerprint
        self.size, self.val_size = len(scenes.train), len(scenes.val)

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Crops `[B, S, S, C]` of uint8 and their classes `[B, S, S]`, by arrays of rows."""
        workers = self.recipe.workers
        # Two pools, or a cut would wait for what is decoded ahead.
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as cutters:
            for batch in self._decoded(readers, rows):
                seed = int(mx.random.randint(0, 2**31 - 1))
                cuts = cutters.map(self._cut, batch, [[seed, row] for row in range(len(batch))])
                images, masks = (np.stack(parts) for parts in zip(*cuts, strict=True))
                yield mx.array(images), mx.array(masks.astype(np.int32)), mx.ones((len(batch),))

    def val_batches(self, batch_size: int, rank: int, world: int) -> Iterator[Any]:
        """Nothing: images are validated whole, by [`SceneTrainer.evaluate`][]."""
        return iter(())

    def _decoded(
        self, pool: ThreadPoolExecutor, rows: Iterable[np.ndarray]
    ) -> Iterator[list[Pair]]:
        waiting: deque[list[Future[Pair]]] = deque()
        for chosen in rows:
            waiting.append([pool.submit(self._read, self.scenes.train[row]) for row in chosen])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        for batch in waiting:
            yield [future.result() for future in batch]

    def _read(self, scene: Scene) -> Pair:
        """No larger than the largest scale needs it."""
        image = read_image(scene.image, self.preprocess.channels)
        mask = Image.fromarray(read_mask(scene.mask, self.scenes.reduce_labels))
        size = self.preprocess.fit(image.size, max(1, self._scales()[1]))
        if size[0] >= image.width:
            return Pair(image, mask)
        resized = image.resize(size, self.preprocess.resample)
        return Pair(resized, mask.resize(size, Image.Resampling.NEAREST))

    def _scales(self) -> tuple[float, float]:
        low, high = (1.0, 1.0) if self.recipe.crop == "none" else self.recipe.scales
        return low, high

    def _cut(self, pair: Pair, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """A square of an image that was resized by a random scale, mirrored half of the time."""
        random = np.random.default_rng(seed)
        side = self.preprocess.size
        fitted = self.preprocess.fit(pair.image.size, random.uniform(*self._scales()))
        zoom = [new / old for new, old in zip(fitted, pair.image.size, strict=True)]
        size = [min(side, n) for n in fitted]
        extent = [n / z for n, z in zip(size, zoom, strict=True)]  # in pixels of the image
        share = random.random(2) if self.recipe.crop != "none" else np.full(2, 0.5)
        corner = [
            s * max(0.0, n - e) for s, n, e in zip(share, pair.image.size, extent, strict=True)
        ]
        ends = [min(c + e, n) for c, e, n in zip(corner, extent, pair.image.size, strict=True)]
        box = (*corner, *ends)
        cut = np.asarray(pair.image.resize(size, self.preprocess.resample, box))
        channels = self.preprocess.channels
        image = np.empty((side, side, channels), np.uint8)
        image[:] = np.round(255 * np.array(self.preprocess.mean)).clip(0, 255)
        mask = np.full((side, side), IGNORE, np.uint8)
        place = slice(size[1]), slice(size[0])
        image[place] = cut.reshape(size[1], size[0], channels)
        mask[place] = np.asarray(pair.mask.resize(size, Image.Resampling.NEAREST, box))
        if self.recipe.flip and random.random() < 0.5:
            return image[:, ::-1], mask[:, ::-1]
        return image, mask


class SceneAugment(Augment):
    """What is left to do on the device: colors and normalization. Masks stay as they are."""

    def __init__(self, recipe: Recipe, classes: int, preprocess: Preprocess) -> None:
        off = {**OFF, "crop": "resized" if recipe.crop == "shift" else recipe.crop}
        if wrong := [name for name, value in off.items() if getattr(recipe, name) != value]:
            wanted = ", ".join(f"{name} {off[name]}" for name in wrong)
            raise ValueError(f"[train] semantic segmentation needs {wanted}.")
        mean, std = list(preprocess.mean), list(preprocess.std)
        super().__init__(recipe, classes, preprocess.size, mean, std)

    def __call__(
        self, images: mx.array, labels: mx.array, aspect: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Crops as network input, and their classes `[B, S, S]`."""
        images = images.astype(mx.float32) / 255
        if self.recipe.jitter:
            images = jitter_color(images, self.recipe.jitter)
        return self.normalize(images), labels


def pixel_objective(
    model: UPerNet, images: mx.array, labels: mx.array
) -> tuple[mx.array, mx.array]:
    """Cross-entropy of both heads at full size, and the share of pixels that are right.

    Args:
        model: In training mode.
        images: Prepared, `[B, S, S, C]`.
        labels: Classes `[B, S, S]`, `IGNORE` for none.
    """
    head, auxiliary = (resize_bilinear(y, labels.shape[1:]) for y in model.decode_both(images))
    loss = pixel_entropy(head, labels) + AUXILIARY * pixel_entropy(auxiliary, labels)
    return loss, share_right(head, labels)


def pixel_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Mean cross-entropy of the pixels that have a class, in float32."""
    known = labels != IGNORE
    classes = mx.where(known, labels, 0)
    entropy = nn.losses.cross_entropy(logits.astype(mx.float32), classes) * known
    return entropy.sum() / mx.maximum(known.sum(), 1)


def share_right(scores: mx.array, labels: mx.array) -> mx.array:
    """The share of the pixels with a class whose largest score `[B, H, W, classes]` is its."""
    known = labels != IGNORE
    right = (scores.argmax(axis=-1) == labels) & known
    return right.sum() / mx.maximum(known.sum(), 1)


def query_objective(
    model: Universal, images: mx.array, labels: mx.array
) -> tuple[mx.array, mx.array]:
    """The loss of queries that are matched with the classes of each image.

    What is called right are the classes of all masks together, where the masks have their pixels.

    Args:
        model: In training mode.
        images: Prepared, `[B, S, S, C]`.
        labels: Classes `[B, S, S]`, `IGNORE` for none.
    """
    found = model.all_masks(images, "semantic")
    targets = [mask_targets(each) for each in labels]
    points = min(MaskLoss.points, labels[0].size)  # no more than there are pixels
    loss = MaskLoss(points=points)(found, targets)
    classes = mx.softmax(found[-1].classes.astype(mx.float32), axis=-1)[..., :-1]
    scores = mx.sigmoid(found[-1].masks.astype(mx.float32)) @ classes[:, None]
    rows, columns = (
        mx.array((np.arange(new) + 0.5) * old // new).astype(mx.int32)
        for old, new in zip(labels.shape[1:], scores.shape[1:3], strict=True)
    )
    return loss, share_right(scores, labels[:, rows[:, None], columns])


def mask_targets(labels: mx.array) -> MaskTargets:
    """The classes in `[H, W]` and a mask of each; pixels of no class are in none."""
    present = [label for label in np.unique(np.array(labels)).tolist() if label != IGNORE]
    classes = mx.array(present, mx.int32)
    return MaskTargets(classes, labels[None] == classes[:, None, None])


class SceneTrainer(Trainer):
    """A run whose validation segments whole images, as `natten-zoo segment` does."""

    METRIC = "miou"
    source: SceneSource
    model: Any

    def __init__(self, recipe: Recipe, model: Any, source: SceneSource, *rest: Any) -> None:
        is_universal = isinstance(model, Universal)
        self.objective = query_objective if is_universal else pixel_objective
        self.fusible = not is_universal  # SciPy matches queries, step by step
        check_options(recipe, model, mx.distributed.init().size())
        super().__init__(recipe, model, source, *rest)

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Mean IoU of the held-out images, the share of right pixels, and the IoU of each class."""
        files = self.source.scenes.val[self.rank :: self.world]
        self.model.eval()
        with self.averaged():
            own = evaluate_masks(
                self.model,
                files,
                self.source.classes,
                reduce_labels=self.source.scenes.reduce_labels,
                sliding_window=self.recipe.sliding_window,
            )
        self.model.train()
        counts = np.array(mx.distributed.all_sum(mx.array(own.counts), stream=mx.cpu))
        scores = MaskEvaluation(own.names, counts)
        known = (entry for entry in scores.classes() if entry["iou"] is not None)
        each = {f"iou_{entry['class']}": entry["iou"] / 100 for entry in known}
        return scores.miou / 100, {"pixel_accuracy": scores.pixel_accuracy / 100, **each}


def check_options(recipe: Recipe, model: Any, world: int) -> None:
    """Refuse what a model can't do.

    Raises:
        ValueError: An option does not go with it.
    """
    name = type(model).__name__
    if isinstance(model, Universal):
        if recipe.compile == "yes":
            raise ValueError(f"[train] 'compile' must not be yes for a {name}.")
        if recipe.sliding_window:
            raise ValueError(f"[train] 'sliding_window' is for a UPerNet but got a {name}.")
    learns = any(isinstance(m, nn.BatchNorm) and m.trainable_parameters() for m in model.modules())
    if learns and recipe.batch_size < 2 * world * recipe.accumulate:
        raise ValueError(
            f"[train] 'batch_size' must be at least twice processes x accumulate, {world} x "
            f"{recipe.accumulate}, for the batch norms of a {name}, but got {recipe.batch_size}."
        )


def open_scene_source(recipe: Recipe, record: Record) -> SceneSource:
    """The images and masks that a recipe names."""
    scenes = open_scenes(
        recipe.data, recipe.val_fraction, recipe.seed, recipe.reduce_labels, recipe.workers
    )
    return SceneSource(scenes, Preprocess.from_record(record), recipe)

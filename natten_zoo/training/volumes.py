"""Training on volumes: random cubes, cross-entropy plus Dice, and the Dice of what was held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..configs.record import Record
from ..data.arrays import Batch, digests
from ..data.labels import output_names, read_labels
from ..data.nuclei import is_nuclei, read_nuclei
from ..data.volumes import read_volume
from ..layers.resize import source_positions
from ..tasks.volumes import logit_rows, prepare, scale_intensity
from .config import Recipe
from .loop import Trainer
from .step import on_logits, soft_cross_entropy
from .volume_files import check_copies, volume_files

# An epoch sees as many voxels as there are, so often: volumes are few, validation is long.
ROUNDS = 16
# What a recipe may ask of images only.
OFF = {
    "crop": "none",
    "jitter": 0,
    "rand_augment": 0,
    "erase": 0,
    "mixup": 0,
    "cutmix": 0,
    "smoothing": 0,
}


class Labeled(NamedTuple):
    """A volume, prepared, `[X, Y, Z, channels]`, and the class of each voxel, `[X, Y, Z]`."""

    voxels: np.ndarray
    labels: np.ndarray


class VolumeSource:
    """Random cubes of volumes to train on, and volumes to validate on.

    Args:
        train: The volumes to train on.
        val: The volumes to validate on.
        classes: Name of every class.
        side: Of the cubes; volumes that are smaller are mirrored at their ends.
        flip: Whether to mirror cubes along each axis half of the time.
    """

    def __init__(
        self,
        train: Sequence[Labeled],
        val: Sequence[Labeled],
        classes: tuple[str, ...],
        side: int,
        flip: bool,
    ) -> None:
        self.train, self.val, self.classes = train, val, classes
        self.side, self.flip = side, flip
        self.fingerprint = digests(train=chain(*train), val=chain(*val))
        self.size = ROUNDS * sum(-(-volume.labels.size // side**3) for volume in train)
        self.val_size = sum(volume.labels.size for volume in val)

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch of cubes `[B, S, S, S, C]` and their labels for each array of row numbers.

        Where they lie comes from MLX's random state, which checkpoints hold.
        """
        sizes = np.array([volume.labels.size for volume in self.train], np.float64)
        for chosen in rows:
            random = np.random.default_rng(int(mx.random.randint(0, 2**31 - 1)))
            picked = random.choice(len(sizes), len(chosen), p=sizes / sizes.sum())
            cubes = [self._cube(self.train[index], random) for index in picked]
            voxels, labels = (mx.array(np.stack(parts)) for parts in zip(*cubes, strict=True))
            yield voxels, labels, mx.ones((len(chosen),))

    def _cube(self, volume: Labeled, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        missing = [(0, max(0, self.side - n)) for n in volume.labels.shape]
        voxels = np.pad(volume.voxels, [*missing, (0, 0)], mode="symmetric")
        labels = np.pad(volume.labels, missing, mode="symmetric")
        starts = [random.integers(n - self.side + 1) for n in labels.shape]
        steps = [-1 if self.flip and random.random() < 0.5 else 1 for _ in starts]
        place = tuple(slice(start, start + self.side) for start in starts)
        turn = tuple(slice(None, None, step) for step in steps)
        return voxels[place][turn], labels[place][turn]

    def val_batches(self, batch_size: int, rank: int, world: int) -> Iterator[Any]:
        """Nothing: volumes are validated whole, by [`VolumeTrainer.evaluate`][]."""
        return iter(())


class VolumeTargets:
    """What `Augment` is for images: labels become distributions, voxels stay as they are."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        if wrong := [name for name, value in OFF.items() if getattr(recipe, name) != value]:
            wanted = ", ".join(f"{name} {OFF[name]}" for name in wrong)
            raise ValueError(f"[train] a model of volumes needs {wanted}.")
        self.recipe, self.classes = recipe, classes

    def __call__(
        self, voxels: mx.array, labels: mx.array, aspect: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Labels `[B, S, S, S]` as `[B, S, S, S, classes]`."""
        return voxels, (labels[..., None] == mx.arange(self.classes)).astype(mx.float32)


def dice_and_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    r"""Cross-entropy plus one minus the soft Dice, the mean over samples and classes.

    $$\mathrm{Dice}_c = \frac{2 \sum_i p_{ic} t_{ic}}{\sum_i p_{ic} + \sum_i t_{ic}}$$

    Source: Milletari et al., V-Net, https://arxiv.org/abs/1606.04797 (there with squares).

    Args:
        logits: `[B, D, H, W, classes]`.
        targets: Distributions of the same shape.
    """
    p, axes = mx.softmax(logits.astype(mx.float32), axis=-1), (1, 2, 3)
    common, both = (p * targets).sum(axis=axes), (p + targets).sum(axis=axes)  # [B, classes]
    dice = (2 * common + 1e-5) / (both + 1e-5)
    return soft_cross_entropy(logits, targets) + 1 - dice.mean()


class VolumeTrainer(Trainer):
    """A run whose validation looks at whole volumes, by sliding windows."""

    METRIC = "dice"
    objective = staticmethod(on_logits(dice_and_cross_entropy))
    source: VolumeSource
    model: Any

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Mean Dice of the classes but the first, and cross-entropy, of the held-out volumes."""
        count = len(self.source.classes)
        common, both, loss = np.zeros(count), np.zeros(count), 0.0
        self.model.eval()
        with self.averaged():
            for voxels, labels in self.source.val:
                rows = logit_rows(self.model, voxels, 0, (self.source.side,) * 3)
                for logits, truth in zip(rows, labels, strict=True):
                    found = logits.argmax(axis=-1)
                    common += np.bincount(truth[found == truth], minlength=count)
                    both += np.bincount(found.ravel(), minlength=count)
                    both += np.bincount(truth.ravel(), minlength=count)
                    right = np.take_along_axis(logits, truth[..., None], axis=-1)[..., 0]
                    loss += float((np.logaddexp.reduce(logits, axis=-1) - right).sum())
        self.model.train()
        scores = dice_scores(common, both)[1:]
        return float(np.nanmean(scores)), {"loss": loss / self.source.val_size}


def dice_scores(common: np.ndarray, both: np.ndarray) -> np.ndarray:
    """The Dice of each class, NaN of those that neither of two masks has."""
    return np.divide(2 * common, both, out=np.full(len(both), np.nan), where=both > 0)


def open_volumes(recipe: Recipe, record: Record) -> VolumeSource:
    """The volumes that a recipe names.

    Its `data` is a folder with `images/NAME.nii.gz` and `labels/NAME.nii.gz`, whose voxels
    are class indices, and, if classes have names, `classes.txt`, one a line; or the nuclei that
    the package stardist ships ([`natten_zoo.data.nuclei`][]). Of several volumes the last are held
    out, of a single one the end of its longest axis.

    Raises:
        ValueError: There are none, or labels do not fit their volume.
    """
    folder = Path(recipe.data)
    if is_nuclei(folder):
        voxels, instances = read_nuclei(folder)
        volumes = [Labeled(scale_intensity(voxels, record), (instances > 0).astype(np.int32))]
        classes: tuple[str, ...] = ("background", "nucleus")
    else:
        files = volume_files(folder)
        check_copies([image for image, _ in files], kept_volumes(len(files), recipe.val_fraction))
        volumes = [read_labeled(*pair, record, recipe.affine) for pair in files]
        classes = _classes(folder / "classes.txt", 1 + max(int(v.labels.max()) for v in volumes))
    train, val = split(volumes, recipe.val_fraction)
    if not any(volume.labels.any() for volume in val):
        raise ValueError(
            "[train] what is held out must have voxels of other classes than the first."
        )
    return VolumeSource(train, val, classes, record.input_size, recipe.flip)


def _classes(file: Path, count: int) -> tuple[str, ...]:
    if not file.exists():
        return output_names(None, max(2, count))
    names = read_labels(file)
    if len(names) < count:
        raise ValueError(f"[train] {file} must name {count} classes but names {len(names)}.")
    return names


def read_labeled(
    image_file: Path, label_file: Path, record: Record, affine: str = "auto"
) -> Labeled:
    """An image as the model wants it, and its labels on the same grid.

    Args:
        image_file: The image, as NIfTI.
        label_file: Its labels.
        record: What the model wants.
        affine: Which part of a header that contradicts itself is right; see
            [`natten_zoo.data.volumes.read_volume`][]. `auto`: that is an error.

    Raises:
        ValueError: They do not lie in the same place, or the labels are no class indices.
    """
    chosen = None if affine == "auto" else affine
    image, labels = (read_volume(file, affine=chosen) for file in (image_file, label_file))
    same = image.size == labels.size and np.allclose(image.affine, labels.affine, atol=1e-3)
    if not same or labels.voxels.shape[-1] != 1:
        raise ValueError(f"[train] {label_file} must lie on the grid of {image_file}.")
    values = labels.voxels[..., 0]
    if (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError(f"[train] {label_file} must hold class indices, from 0 for background.")
    voxels = prepare(image, record)
    for axis, size in enumerate(voxels.shape[:3]):
        if values.shape[axis] != size:
            nearest = source_positions(values.shape[axis], size).round().astype(int)
            values = np.take(values, nearest.clip(max=values.shape[axis] - 1), axis=axis)
    return Labeled(voxels, values.astype(np.int32))


def kept_volumes(count: int, fraction: float) -> int:
    """How many of several volumes are trained on; at least the last is held out."""
    return count - max(1, round(fraction * count))


def split(volumes: Sequence[Labeled], fraction: float) -> tuple[list[Labeled], list[Labeled]]:
    """Volumes to train on and to validate on; a single one is cut across its longest axis."""
    if len(volumes) > 1:
        kept = kept_volumes(len(volumes), fraction)
        return [*volumes[:kept]], [*volumes[kept:]]
    axis = int(np.argmax(volumes[0].labels.shape))
    size = volumes[0].labels.shape[axis]
    kept = size - max(1, round(fraction * size))
    first, last = (
        Labeled(*(np.take(part, range(*ends), axis=axis) for part in volumes[0]))
        for ends in ((0, kept), (kept, size))
    )
    return [first], [last]

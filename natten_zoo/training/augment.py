"""Augmentation on the device: whole batches of images at once, drawn from MLX's random state.

Images are float32 `[B, H, W, C]` in 0..1 and stay so; `Augment` is the recipe's pipeline.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .color import jitter_color, rand_augment
from .config import Recipe

BETA_TABLE = 4096
IMAGES_ONLY = ("jitter", "rand_augment", "erase", "cutmix")


def uniform(batch: int, low: float = 0.0, high: float = 1.0) -> mx.array:
    """One draw per image, shaped to broadcast against `[B, H, W, C]`."""
    return mx.random.uniform(low, high, (batch, 1, 1, 1))


Boxes = tuple[mx.array, mx.array, mx.array, mx.array]


def resample(images: mx.array, boxes: Boxes, size: int, mirror: mx.array | None = None) -> mx.array:
    """Cut one box out of each image and resize it to `size` x `size`, antialiased bilinear.

    Args:
        images: `[B, H, W, C]`.
        boxes: Top, left, height and width in pixels, `[B]` each; outside of the image is black.
        size: The output's side.
        mirror: `[B]` of bool, boxes to flip left-right.

    Returns:
        `[B, size, size, C]`.
    """
    batch, rows, columns, channels = images.shape
    top, left, height, width = boxes
    vertical = _weights(top, height, rows, size)  # [B, size, H]
    horizontal = _weights(left, width, columns, size)  # [B, size, W]
    if mirror is not None:
        horizontal = mx.where(mirror[:, None, None], horizontal[:, ::-1], horizontal)
    tall = vertical @ images.reshape(batch, rows, columns * channels)  # [B, size, W * C]
    tall = tall.reshape(batch, size, columns, channels).swapaxes(1, 2)  # [B, W, size, C]
    cut = horizontal @ tall.reshape(batch, columns, size * channels)  # [B, size, size * C]
    return cut.reshape(batch, size, size, channels).swapaxes(1, 2)


def _weights(start: mx.array, extent: mx.array, length: int, size: int) -> mx.array:
    """Triangle filter `[B, size, length]` of output pixel i over the input pixels of one axis."""
    step = (extent / size)[:, None]  # [B, 1]
    center = start[:, None] + (mx.arange(size) + 0.5) * step - 0.5  # [B, size]
    distance = mx.abs(center[..., None] - mx.arange(length))  # [B, size, length]
    weight = mx.maximum(0, 1 - distance / mx.maximum(step, 1)[..., None])
    return weight / mx.maximum(weight.sum(-1, keepdims=True), 1e-6)


def shift_boxes(batch: int, side: int, padding: int) -> Boxes:
    """Boxes of the image's own size, moved by up to `padding` whole pixels."""
    offset = mx.random.randint(-padding, padding + 1, (2, batch)).astype(mx.float32)
    whole = mx.full((batch,), float(side))
    return offset[0], offset[1], whole, whole


def area_boxes(batch: int, side: int, smallest: float, aspect: mx.array) -> Boxes:
    """Boxes of a random area (`smallest`..1) and shape (3:4..4:3 in the original image).

    `aspect` `[B]` is width / height of the original, which was squeezed into a square.
    """
    area = mx.random.uniform(smallest, 1.0, (batch,))
    ratio = mx.exp(mx.random.uniform(np.log(3 / 4), np.log(4 / 3), (batch,))) / aspect
    height = mx.minimum(mx.sqrt(area / ratio), 1) * side
    width = mx.minimum(mx.sqrt(area * ratio), 1) * side
    free = mx.random.uniform(shape=(2, batch))
    return free[0] * (side - height), free[1] * (side - width), height, width


def erase(images: mx.array, probability: float) -> mx.array:
    """Replace one random rectangle (2-33 % of the area) by noise, in a share of the images."""
    batch, rows, columns, _ = images.shape
    area, ratio = uniform(batch, 0.02, 1 / 3), mx.exp(uniform(batch, np.log(0.3), np.log(3.3)))
    height = mx.minimum(mx.sqrt(area * ratio), 1) * rows  # [B, 1, 1, 1]
    width = mx.minimum(mx.sqrt(area / ratio), 1) * columns
    top, left = uniform(batch) * (rows - height), uniform(batch) * (columns - width)
    y, x = mx.arange(rows)[:, None, None], mx.arange(columns)[:, None]
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    noise = mx.clip(0.5 + 0.25 * mx.random.normal(images.shape), 0, 1)
    return mx.where(inside & (uniform(batch) < probability), noise, images)


class Mixer:
    """Mixup or cutmix of a batch with its own reverse; targets `[B, classes]` are mixed alike.

    MLX has no Beta sampler, so the mixing weight comes from a table of the distribution.
    """

    def __init__(self, mixup: float, cutmix: float, probability: float) -> None:
        self.probability, self.has_both = probability, mixup > 0 and cutmix > 0
        self.mixup, self.cutmix = _beta_table(mixup), _beta_table(cutmix)

    def __call__(self, images: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        if self.mixup is None and self.cutmix is None:
            return images, targets
        active = mx.random.uniform() < self.probability
        blend, blend_keep = self._blend(images)
        paste, paste_keep = self._paste(images)
        use_paste = mx.random.uniform() < (0.5 if self.has_both else float(self.mixup is None))
        keep = mx.where(active, mx.where(use_paste, paste_keep, blend_keep), 1.0)
        images = mx.where(active, mx.where(use_paste, paste, blend), images)
        return images, keep * targets + (1 - keep) * targets[::-1]

    def _blend(self, images: mx.array) -> tuple[mx.array, mx.array]:
        if self.mixup is None:
            return images, mx.array(1.0)
        keep = self.mixup[mx.random.randint(0, BETA_TABLE)]
        return keep * images + (1 - keep) * images[::-1], keep

    def _paste(self, images: mx.array) -> tuple[mx.array, mx.array]:
        if self.cutmix is None:
            return images, mx.array(1.0)
        _, rows, columns, _ = images.shape
        share = mx.sqrt(1 - self.cutmix[mx.random.randint(0, BETA_TABLE)])
        center = mx.random.uniform(shape=(2,))
        y, x = mx.arange(rows)[:, None, None], mx.arange(columns)[:, None]
        inside = (mx.abs(y + 0.5 - center[0] * rows) < share * rows / 2) & (
            mx.abs(x + 0.5 - center[1] * columns) < share * columns / 2
        )  # [H, W, 1]
        return mx.where(inside, images[::-1], images), 1 - inside.astype(mx.float32).mean()


def _beta_table(alpha: float) -> mx.array | None:
    if alpha == 0:
        return None
    return mx.array(np.random.default_rng(0).beta(alpha, alpha, BETA_TABLE).astype(np.float32))


class Augment:
    """The recipe's pipeline from uint8 images and labels to network input and soft targets."""

    def __init__(
        self, recipe: Recipe, classes: int, size: int, mean: list[float], std: list[float]
    ) -> None:
        self.recipe, self.classes, self.size = recipe, classes, size
        self.mean, self.std = mx.array(mean), mx.array(std)
        self.mix = Mixer(recipe.mixup, recipe.cutmix, recipe.mix_prob)

    def __call__(
        self, images: mx.array, labels: mx.array, aspect: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Augment uint8 `[B, S, S, C]`, labels `[B]`, aspect `[B]` to `[B, size, size, C]`.

        Clips `[B, T, S, S, C]` become `[B, T, size, size, C]`, all frames of one changed alike.
        """
        if images.ndim < 5:
            images, targets = self._augment(images, labels, aspect)
            return self.normalize(images), targets
        if self.recipe.jitter or self.recipe.rand_augment:
            raise ValueError("[Augment] 'jitter' and 'rand_augment' must be 0 for clips.")
        # Frames are channels meanwhile: what is drawn for an image is then drawn for a clip.
        clips, targets = self._augment(images.moveaxis(1, -2).flatten(-2), labels, aspect)
        clips = mx.unflatten(clips, -1, (-1, images.shape[-1])).moveaxis(-2, 1)
        return self.normalize(clips), targets

    def _augment(
        self, images: mx.array, labels: mx.array, aspect: mx.array
    ) -> tuple[mx.array, mx.array]:
        recipe = self.recipe
        images = self._geometry(images.astype(mx.float32) / 255, aspect)
        if recipe.rand_augment:
            images = rand_augment(images, recipe.rand_augment / 10)
        if recipe.jitter:
            images = jitter_color(images, recipe.jitter)
        if recipe.erase:
            images = erase(images, recipe.erase)
        return self.mix(images, self.targets(labels))

    def targets(self, labels: mx.array) -> mx.array:
        """Labels `[B]` as smoothed distributions `[B, classes]`."""
        one_hot = (labels[:, None] == mx.arange(self.classes)).astype(mx.float32)
        return one_hot * (1 - self.recipe.smoothing) + self.recipe.smoothing / self.classes

    def prepare(self, images: mx.array) -> mx.array:
        """Network input from uint8 images, as at inference."""
        return self.normalize(images.astype(mx.float32) / 255)

    def normalize(self, images: mx.array) -> mx.array:
        """Subtract the mean and divide by the standard deviation of each channel."""
        return (images - self.mean) / self.std

    def _geometry(self, images: mx.array, aspect: mx.array) -> mx.array:
        batch, side = images.shape[0], images.shape[1]
        mirror = mx.random.uniform(shape=(batch,)) < 0.5 if self.recipe.flip else None
        if self.recipe.crop == "shift":
            boxes = shift_boxes(batch, side, self.recipe.crop_padding)
        elif self.recipe.crop == "resized":
            boxes = area_boxes(batch, side, self.recipe.crop_scale, aspect)
        else:
            boxes = shift_boxes(batch, side, 0)
        return resample(images, boxes, self.size, mirror)


class SequenceAugment(Augment):
    """The same for sequences, float `[B, L, C]`: label smoothing and mixup, nothing of images."""

    def __init__(self, recipe: Recipe, classes: int, mean: list[float], std: list[float]) -> None:
        off = {"crop": "none", "flip": False} | dict.fromkeys(IMAGES_ONLY, 0)
        if wrong := [name for name, value in off.items() if getattr(recipe, name) != value]:
            wanted = ", ".join(f"{name} {off[name]}" for name in wrong)
            raise ValueError(f"[train] a model of sequences needs {wanted}.")
        super().__init__(recipe, classes, 0, mean, std)

    def __call__(
        self, sequences: mx.array, labels: mx.array, aspect: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Augment `[B, L, C]` and labels `[B]`; there is no aspect ratio to look at."""
        sequences, targets = self.mix(sequences, self.targets(labels))
        return self.normalize(sequences), targets

    def prepare(self, sequences: mx.array) -> mx.array:
        """Network input from raw sequences, as at inference."""
        return self.normalize(sequences)

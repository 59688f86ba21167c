"""Training a model that makes images: noise at all levels, and what the network explains of it."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ..configs.record import Record
from ..models.hdit import HDiT
from .augment import Augment
from .config import Recipe
from .loop import Trainer

# What a recipe may ask of classifiers only.
OFF = {"jitter": 0, "rand_augment": 0, "erase": 0, "mixup": 0, "cutmix": 0, "smoothing": 0}
# Share of the images that are shown without their label, so that a model can be guided.
UNLABELED = 0.1
# Images whose noise is told for validation; more tell no more.
MOST = 2000
# The noises of the density, beyond those that the sampler takes.
WIDEST = (1e-3, 1e3)


class DiffusionAugment(Augment):
    """The same for models that make images: what would be made of changed ones is refused."""

    def __init__(self, recipe: Recipe, record: Record) -> None:
        if wrong := [name for name, value in OFF.items() if getattr(recipe, name) != value]:
            wanted = ", ".join(f"{name} {OFF[name]}" for name in wrong)
            raise ValueError(f"[train] a model that makes images needs {wanted}.")
        super().__init__(recipe, 0, record.input_size, list(record.mean), list(record.std))

    def targets(self, labels: mx.array) -> mx.array:
        """Labels `[B]` as they are."""
        return labels


def denoising(model: HDiT, images: mx.array, labels: mx.array) -> tuple[mx.array, None]:
    """The objective: random noise on each image, and the error of what the network says of it.

    Args:
        model: The model.
        images: `[B, H, W, C]`, normalized.
        labels: `[B]`; a tenth of them is not told.
    """
    count, config = images.shape[0], model.config
    strata = (mx.arange(count) + mx.random.uniform(shape=(count,))) / count  # one draw in each
    sigma = draw_noise(strata, config, images.shape[1])
    noise = mx.random.normal(images.shape)
    told = None
    if config.num_labels:
        hidden = mx.random.uniform(shape=(count,)) < UNLABELED
        told = mx.where(hidden, config.num_labels - 1, labels)
    errors, _, weights = weigh(model, images.astype(mx.float32), noise, sigma, told)
    return (errors * weights).mean(), None


def weigh(
    model: HDiT, images: mx.array, noise: mx.array, sigma: mx.array, labels: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    r"""Mean squared errors of the network, mean squares of its targets, and their weights: `[B]`.

    The weight of an image's error is the soft min-SNR's,
    $(\sigma \sigma_d / (\sigma^2 + \sigma_d^2))^2$ on the scale of the network's output. Source:
    Crowson et al., https://arxiv.org/abs/2401.11605, after Hang et al.,
    https://arxiv.org/abs/2303.09556.
    """
    skip, out, scale = model.preconditioning(sigma)
    noisy = images + sigma[:, None, None, None] * noise
    dtype = model.out_norm.scale.dtype
    found = model((noisy * scale).astype(dtype), sigma, labels).astype(mx.float32)
    target = (images - skip * noisy) / out
    errors = (found - target).square().mean((1, 2, 3))
    weights = (out * scale).squeeze((1, 2, 3)).square()
    return errors, target.square().mean((1, 2, 3)), weights


def draw_noise(uniform: mx.array, config: Any, side: int) -> mx.array:
    r"""Standard deviations of noise, spread evenly over what an image's size makes of them.

    With $\sigma = \sigma_d \tan\phi$, a cosine schedule has $\phi$ uniform; it is shifted for
    images whose noise averages out over more pixels, and of two shifts, for details of 32 pixels a
    side and for the whole, the logarithms are interpolated. Source: Hoogeboom et al., simple
    diffusion, https://arxiv.org/abs/2301.11093, as k-diffusion's `cosine-interpolated`.

    Args:
        uniform: `[B]` in 0..1; 0 is the least noise.
        config: The model's, whose range is widened to 0.001..1000.
        side: Of the images in pixels.
    """
    low = min(config.sigma_min, WIDEST[0]) / config.sigma_data
    high = max(config.sigma_max, WIDEST[1]) / config.sigma_data
    logs = []
    for reference in (min(32, side), side):
        shift = math.log(side / reference)
        ends = (math.atan(low * math.exp(-shift)), math.atan(high * math.exp(-shift)))
        angle = ends[0] + uniform * (ends[1] - ends[0])
        logs.append(mx.log(mx.tan(angle)) + shift)
    mixed = logs[1] + uniform * (logs[0] - logs[1])
    return mx.exp(mixed) * config.sigma_data


class DiffusionTrainer(Trainer):
    """A run that is validated by the share of its targets' variance that the network explains."""

    METRIC = "explained"
    objective = staticmethod(denoising)
    model: HDiT

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """That share and the mean loss, of the same noise on the same images at every call."""
        size = min(self.recipe.batch_size // self.world, 500)
        sums, key = mx.zeros((3,)), mx.random.key(self.recipe.seed)
        self.model.eval()
        with self.averaged():
            for images, labels in self.source.val_batches(size, self.rank, self.world):
                key, drawn = mx.random.split(key)
                sums = sums + self._measure(self.augment.prepare(images), labels, drawn)
                mx.eval(sums)
                if float(sums[2]) * self.world >= MOST:
                    break
        self.model.train()
        wrong, all_of_it, count = mx.distributed.all_sum(sums, stream=mx.cpu)
        return float(1 - wrong / all_of_it), {"loss": float(wrong / count)}

    def _measure(self, images: mx.array, labels: mx.array, key: mx.array) -> mx.array:
        """Weighted errors, weighted squares and images, summed over those with labels."""
        count, known = len(labels), labels >= 0
        uniform = (mx.arange(count) + 0.5) / count
        sigma = draw_noise(uniform, self.model.config, images.shape[1])
        told = mx.maximum(labels, 0) if self.model.config.num_labels else None
        noise = mx.random.normal(images.shape, key=key)
        errors, squares, weights = weigh(self.model, images, noise, sigma, told)
        parts = (errors * weights, squares * weights, mx.ones(count))
        return mx.stack([(part * known).sum() for part in parts])

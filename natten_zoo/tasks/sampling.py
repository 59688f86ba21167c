"""Making images of noise, by a model that takes noise away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from PIL import Image

from ..configs.record import Record
from ..data.finite import check_finite
from ..models.hdit import HDiT
from .samplers import SAMPLERS, Denoiser, karras_schedule

# What is told after each step: steps done, and steps in all.
Each = Callable[[int, int], object]


@dataclass(frozen=True)
class Samples:
    """Images that a model made.

    Attributes:
        pixels: `[count, height, width, channels]` of uint8.
    """

    pixels: np.ndarray

    def images(self) -> list[Image.Image]:
        """Each as an image, gray if it has one channel."""
        return [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in self.pixels]

    def grid(self, columns: int | None = None, scale: int = 1) -> Image.Image:
        """All of them in one image.

        Args:
            columns: How many lie side by side. Default: as many as make it a square.
            scale: Side of the square that a pixel becomes.
        """
        count, height, width, channels = self.pixels.shape
        columns = columns or math.ceil(math.sqrt(count))
        rows = -(-count // columns)
        page = np.zeros((rows * columns, height, width, channels), np.uint8)
        page[:count] = self.pixels
        page = page.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
        page = page.reshape(rows * height, columns * width, channels)
        page = page.repeat(scale, axis=0).repeat(scale, axis=1)
        return Samples(page[None]).images()[0]


def sample(
    model: HDiT,
    count: int = 1,
    *,
    steps: int = 50,
    sampler: str = "dpmpp_2m",
    labels: int | Sequence[int] | None = None,
    guidance: float = 1.0,
    size: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    each: Each | None = None,
) -> Samples:
    r"""Let a diffusion model make images.

    Args:
        model: The model, in evaluation mode.
        count: How many images.
        steps: Along Karras' schedule, from the most noise that the model was trained for to the
            least.
        sampler: One of `"euler"`, `"heun"`, `"dpm_2"`, `"dpmpp_2m"`
            ([`natten_zoo.tasks.samplers`][]).
        labels: What the images shall show, one for all or one for each; for models with labels
            only. Default: the last label, which stands for none where a model was trained so.
        guidance: With $g \ne 1$ the guess is that without a label plus $g$ times what the label
            changes (Ho and Salimans, https://arxiv.org/abs/2207.12598); two calls of the network
            instead of one.
        size: Height and width. Default: what the model was trained on.
        seed: Of the noise. An image depends on it and on its number, not on the others.
        batch_size: Images at a time.
        each: Is called after each step with the steps done and all there are.

    Raises:
        ValueError: An argument is out of range, or nothing tells a size.

    Examples:
        >>> from natten_zoo.models import HDiT, HDiTConfig
        >>> model = HDiT(HDiTConfig(widths=(16, 32), depths=(1, 1), head_dims=16, patch=(1, 1)))
        >>> sample(model.eval(), 4, steps=2, size=(16, 16)).pixels.shape
        (4, 16, 16, 3)
    """
    _check(count=count, steps=steps, batch_size=batch_size)
    if sampler not in SAMPLERS:
        raise ValueError(
            f"[sample] 'sampler' must be one of {', '.join(SAMPLERS)} but got {sampler!r}."
        )
    config = model.config
    if config.time != "log_sigma" or config.cond_dim:
        raise ValueError("[sample] 'model' must be a diffusion model without other conditioning.")
    size = _size(model, size)
    chosen = _labels(config.num_labels, labels, guidance, count)
    sigmas = karras_schedule(steps, config.sigma_min, config.sigma_max)
    keys = mx.random.split(mx.random.key(seed), count)
    starts = range(0, count, batch_size)
    total, done, found = steps * len(starts), 0, []
    for start in starts:
        part = slice(start, start + batch_size)
        noise = mx.stack(
            [mx.random.normal((*size, config.in_chans), key=key) for key in keys[part]]
        )
        x = noise * sigmas[0]
        denoise = guided(model, None if chosen is None else chosen[part], guidance)
        for step in SAMPLERS[sampler](denoise, x, sigmas):
            mx.eval(x := step)
            done += 1
            if each is not None:
                each(done, total)
        found.append(np.array(x))
    return Samples(to_pixels(np.concatenate(found), model.record))


def guided(model: HDiT, labels: np.ndarray | None, guidance: float) -> Denoiser:
    """A model's denoiser for labels, with what they change multiplied by `guidance`."""

    def denoise(x: mx.array, sigma: float) -> mx.array:
        noise = mx.full(x.shape[0], sigma)
        if labels is None:
            return model.denoise(x, noise)
        told = model.denoise(x, noise, mx.array(labels))
        if guidance == 1:
            return told
        free = model.denoise(x, noise, mx.full(x.shape[0], model.config.num_labels - 1, mx.int32))
        return free + guidance * (told - free)

    return denoise


def to_pixels(values: np.ndarray, record: Record | None) -> np.ndarray:
    """A model's values as uint8, by its record's mean and deviation (-1..1 without one).

    Raises:
        ValueError: They are no numbers.
    """
    check_finite("sample", "images", values)
    mean, std = (0.5, 0.5) if record is None else (np.array(record.mean), np.array(record.std))
    return np.clip((values * std + mean) * 255 + 0.5, 0, 255).astype(np.uint8)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"[sample] '{name}' must be positive but got {value}.")


def _size(model: HDiT, size: Sequence[int] | None) -> tuple[int, ...]:
    side = model.record.input_size if model.record else 0
    size = (side, side) if size is None else tuple(size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            "[sample] 'size' must be a height and a width, as the model tells none, but got "
            f"{size}."
        )
    return size


def _labels(
    rows: int, labels: int | Sequence[int] | None, guidance: float, count: int
) -> np.ndarray | None:
    """One label for each image, or None for a model without labels."""
    if not rows:
        if labels is not None or guidance != 1:
            raise ValueError("[sample] 'labels' and 'guidance' must be left out: the model has no "
                             "labels.")  # fmt: skip
        return None
    given = np.array(rows - 1 if labels is None else labels)
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= rows:
        raise ValueError(f"[sample] 'labels' must be integers in 0..{rows - 1} but got {labels}.")
    if given.ndim and given.shape != (count,):
        raise ValueError(f"[sample] 'labels' must be one, or one for each of {count} images, but "
                         f"got {given.size}.")  # fmt: skip
    return np.broadcast_to(given, (count,))

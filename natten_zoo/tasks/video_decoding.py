"""Decoding the latents of a video: whole or in tiles, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from ..data.finite import check_finite
from ..models import LTXDecoder
from ..models.clip import Clip
from .video_memory import Plan, costs, plan_decoding, usable_memory
from .video_tiles import Tiling, decode_tiles


def decode_video(
    model: LTXDecoder,
    latents: mx.array,
    *,
    normalized: bool = False,
    steps: int | None = None,
    memory: int | None = None,
    tiling: Tiling | bool | None = None,
    seed: int = 0,
    each: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """The frames of a video, of its latents.

    By default the result is that of the whole video at once, to rounding: attention goes through it
    in slabs of frames, which see the frames around them, and in groups of heads. Tiles see nothing
    over their borders and are cross-faded, as the reference does it. They take less memory.

    Args:
        model: The decoder, in evaluation mode. Weights that another port has in arrays do as well:
            `model.load_weights(list(LTXDecoder.sanitize(arrays).items()))`.
        latents: `[batch, frames, rows, columns, channels]`.
        normalized: Whether they are as the diffusion model makes them. Those that pipelines return
            as latents are not.
        steps: Of the decoder's diffusion. Default: the model's own number, 1 in LTX-2.5.
        memory: Bytes that MLX's arrays may take, the weights' included. Default: what
            [`natten_zoo.tasks.video_memory.usable_memory`][] says.
        tiling: The sizes of tiles; True for those of which least is computed again in this memory,
            up to the reference's of 80 frames and 768 x 768 pixels. Default: none.
        seed: Of the noise. It is the same for any memory, but tiles draw their own.
        each: Called with the number of multiply-adds that are done and that of all, now and then.

    Returns:
        `[batch, frames, height, width, 3]`, uint8: 8 frames for each of the latents' after the
        first, 32 pixels for each row and column.

    Raises:
        TypeError: `latents` are no array of MLX or no floating point numbers.
        ValueError: They are too small, of another number of channels, or not finite; or the memory
            is too little, and then the message says how much it takes.

    Examples:
        >>> from natten_zoo.models import LTXDecoderConfig
        >>> config = LTXDecoderConfig(
        ...     in_chans=8, head_dim=16, widths=(64, 32, 16, 16, 16), depths=(1, 1, 1, 1, 1),
        ...     kernel_sizes=((3, 3, 3),) * 5, reductions=(2, 2, 1, 1), time_dim=24)
        >>> decode_video(LTXDecoder(config), mx.zeros((1, 2, 3, 4, 8))).shape
        (1, 9, 96, 128, 3)
    """
    model.check_input(latents)
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ValueError(f"[decode_video] 'steps' must be a positive integer but got {steps!r}.")
    check_finite("decode_video", "latents", np.array(latents.astype(mx.float32)))
    memory = usable_memory() if memory is None else memory
    size, batch = latents.shape[1:4], latents.shape[0]
    plan = plan_decoding(model, size, memory, tiling, batch=batch, steps=steps)
    latents = model.denormalize(latents) if normalized else latents
    with _bounded_cache(memory - plan.peak):
        pieces = [_pixels(x) for x in _decoded(model, latents, plan, steps, seed, each)]
    return np.concatenate(pieces, axis=1)


def _decoded(
    model: LTXDecoder,
    latents: mx.array,
    plan: Plan,
    steps: int | None,
    seed: int,
    each: Callable[[int, int], object] | None,
) -> Iterator[mx.array]:
    """Consecutive frames, in numbers of about -1..1."""
    config, cuts, steps = model.config, plan.cuts, steps or model.config.num_steps
    if each is not None:
        cuts = plan.counted(costs(config), _Progress(plan.macs, each))
    random = _Noise(seed, model.conv_in.bias.dtype)
    grid = model.grid(latents, cuts)
    if plan.tiling is None:
        context = model.context(grid, cuts, ghosts=config.ghosts * config.ratio[0])
        shape = (latents.shape[0], *config.size_of(latents.shape[1:4]), config.out_chans)
        yield model.denoise(Clip([random(shape)]), context, steps, cuts[-1])
    else:
        whole = grid.whole()
        grid.release(grid.frames)
        yield from decode_tiles(model, whole, plan.tiling, cuts, random, steps)


class _Noise:
    """Standard normal arrays, one after the other."""

    def __init__(self, seed: int, dtype: mx.Dtype) -> None:
        self._key, self._dtype = mx.random.key(seed), dtype

    def __call__(self, shape: Sequence[int]) -> mx.array:
        self._key, key = mx.random.split(self._key)
        noise = mx.random.normal(shape, dtype=self._dtype, key=key)
        mx.eval(noise)
        return noise


class _Progress:
    """Adds up what is done, which is more than all where tiles overlap."""

    def __init__(self, total: int, each: Callable[[int, int], object]) -> None:
        self._done, self._total, self._each = 0, total, each

    def __call__(self, macs: int) -> None:
        self._done += macs
        self._each(min(self._done, self._total), self._total)


def _pixels(x: mx.array) -> np.ndarray:
    """Frames as bytes, one after the other, for what is made of each is four times as large."""
    frames = []
    for frame in mx.split(x, x.shape[1], axis=1):
        values = np.array(frame.astype(mx.float32))
        check_finite("decode_video", "frames", values)
        frames.append(np.rint(np.clip(values / 2 + 0.5, 0, 1) * 255).astype(np.uint8))
    return np.concatenate(frames, axis=1)


@contextmanager
def _bounded_cache(limit: int) -> Iterator[None]:
    """Have MLX keep no more freed memory for later than that."""
    before = mx.set_cache_limit(max(limit, 0))
    try:
        yield
    finally:
        mx.set_cache_limit(before)

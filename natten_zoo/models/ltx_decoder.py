"""The video decoder of LTX-2.5: from latents to frames, by 3-D neighborhood attention alone.

Lightricks, LTX-2.5, https://huggingface.co/Lightricks/LTX-2.5; computed as diffusers 0.42.1 does
(`LTX2VideoDiffusionDecoderModel`, Apache-2.0). Four stages make a context of the latents, each
finer than the one before; a fifth removes noise from the pixels, told of the context, in one step
or several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .base import Model
from .clip import WHOLE, Clip, Cut
from .ltx_blocks import (
    EPS,
    Block,
    DiffusionBlock,
    Modulator,
    TimeEmbedder,
    Upsample,
    patchify,
    unpatchify,
)
from .ltx_config import LTXDecoderConfig
from .ltx_names import own_names

Cuts = Sequence[Cut]


class LTXDecoder(Model):
    """Diffusion decoder of video latents.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, frames, height, width, in_chans]`, latents that are not normalized, at
          least 3 x 7 x 7 of LTX-2.5's.
        - Noise, optional: `[batch, *pixels, out_chans]`, standard normal.
        - Output: `[batch, *pixels, out_chans]`, about -1..1, where `pixels` are
          `config.size_of` the latents: 8 frames for each after the first, 32 x 32 pixels.

    Attributes:
        latents_mean: Per channel, of the latents as the diffusion model sees them normalized.
        latents_std: Likewise.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import LTXDecoder, LTXDecoderConfig
        >>> config = LTXDecoderConfig(
        ...     in_chans=8, head_dim=16, widths=(64, 32, 16, 16, 16), depths=(1, 1, 1, 1, 1),
        ...     kernel_sizes=((3, 3, 3),) * 5, reductions=(2, 2, 1, 1), time_dim=24)
        >>> LTXDecoder(config)(mx.zeros((1, 2, 3, 3, 8))).shape
        (1, 9, 96, 96, 3)
    """

    Config = LTXDecoderConfig
    TASK = "video-decoding"
    AXES = ("frames", "height", "width")

    def __init__(self, config: LTXDecoderConfig) -> None:
        super().__init__(config)
        head_dim, widths, dim = config.head_dim, config.widths, config.widths[-1]
        self.conv_in = nn.Linear(config.in_chans, widths[0])
        self.det_stages = [
            [Block(width, head_dim, kernel) for _ in range(depth)]
            for width, kernel, depth in zip(
                widths[:-1], config.kernel_sizes[:-1], config.depths[:-1], strict=True
            )
        ]
        self.upsamples = [
            Upsample(*sizes)
            for sizes in zip(widths[:-1], config.strides, config.reductions, strict=True)
        ]
        self.conv_in_x_t = nn.Linear(config.out_chans * config.patch_size**2, dim)
        self.t_embedder = TimeEmbedder(config.time_dim, config.time_scale)
        self.shared_adaln = Modulator(config.time_dim, dim)
        self.diff_blocks = [
            DiffusionBlock(dim, head_dim, config.kernel_sizes[-1]) for _ in range(config.depths[-1])
        ]
        self.norm_out = nn.RMSNorm(dim, eps=EPS)
        self.conv_out = nn.Linear(dim, config.out_chans * config.patch_size**2)
        self.latents_mean, self.latents_std = mx.zeros(config.in_chans), mx.ones(config.in_chans)

    def __call__(
        self,
        latents: mx.array,
        noise: mx.array | None = None,
        *,
        steps: int | None = None,
        cuts: Cuts | None = None,
    ) -> mx.array:
        """Decode latents; memory grows with their size unless `cuts` has an entry per stage."""
        self.check_input(latents)
        if noise is None:
            size = self.config.size_of(latents.shape[1:4])
            noise = mx.random.normal((latents.shape[0], *size, self.config.out_chans))
        cuts = cuts or [WHOLE] * len(self.config.widths)
        ghosts = self.config.ghosts * self.config.ratio[0]
        context = self.context(self.grid(latents, cuts), cuts, ghosts=ghosts)
        return self.denoise(Clip([noise]), context, steps, cuts[-1])

    def check_input(self, x: Any) -> None:
        """Refuse latents that have other channels, or in which a window does not fit."""
        super().check_input(x)
        least = self.config.smallest
        if any(size < needed for size, needed in zip(x.shape[1:4], least, strict=True)):
            raise ValueError(
                f"[{type(self).__name__}] 'x' must have at least {least[0]} frames, {least[1]} rows"
                f" and {least[2]} columns, as windows do not fit else, but got {x.shape[1:4]}."
            )

    def denormalize(self, latents: mx.array) -> mx.array:
        """Latents as the decoder takes them, of those that a diffusion model makes."""
        return latents * (self.latents_std / self.config.scaling_factor) + self.latents_mean

    def grid(self, latents: mx.array, cuts: Cuts) -> Clip:
        """What all stages but the last two make of latents: 8 x 8 pixels and 2 frames a token."""
        clip = self._entered(latents)
        for stage in range(len(self.det_stages) - 1):
            clip = self.stage(stage, clip, cuts[stage])
            clip = self.upsamples[stage](clip, cuts[stage])
        return clip

    def context(self, grid: Clip, cuts: Cuts, *, first: bool = True, ghosts: int = 0) -> Clip:
        """What the diffusion stage is told, of a part of the grid; that is used up.

        Args:
            grid: What `grid` returned, or frames, rows and columns of it.
            cuts: How much is done at once in each stage.
            first: Whether the part begins with the video.
            ghosts: How many frames to cut off at its end.
        """
        stage = len(self.det_stages) - 1
        clip = self.stage(stage, grid, cuts[stage])
        clip = self.upsamples[stage](clip, cuts[stage], first=first)
        return clip.recut(cuts[-1].frames, clip.frames - ghosts)

    def stage(self, index: int, clip: Clip, cut: Cut) -> Clip:
        """The blocks of one stage."""
        clip = clip.recut(cut.frames)
        for block in self.det_stages[index]:
            clip = block(clip, cut)
        return clip

    def denoise(
        self,
        noise: Clip,
        context: Clip,
        steps: int | None = None,
        cut: Cut = WHOLE,
    ) -> mx.array:
        r"""Pixels from noise, by Euler steps from time 1 to 0.

        At time $t$ pixels are $x_t = (1 - t) x_0 + t n$, and the velocity is $(x_t - x_0) / t$.

        Args:
            noise: `[batch, frames, height, width, out_chans]`; it is used up.
            context: Of the same frames.
            steps: How many. Default: the configuration's.
            cut: How much is done at once.
        """
        steps = steps or self.config.num_steps
        x = noise.recut(cut.frames)
        for step in range(steps):
            time = 1 - step / steps
            predicted = self.predict(x, context, time, cut)
            if self.config.prediction == "x0":
                if steps == 1:
                    return predicted.whole()
                predicted = predicted.each(lambda x0, x, t=time: (x - x0) / t, cut, x)
            x = x.each(lambda x, v: x - v / steps, cut, predicted)
        return x.whole()

    def predict(self, x: Clip, context: Clip, time: float, cut: Cut = WHOLE) -> Clip:
        """What the last stage says of noisy pixels at a time; arguments as for `denoise`."""
        size, dtype = self.config.patch_size, self.conv_in_x_t.bias.dtype
        modulation = self.shared_adaln(self.t_embedder(time))

        def begun(x: mx.array) -> mx.array:
            return cut.in_chunks(self.conv_in_x_t, patchify(x, size).astype(dtype))

        def finished(x: mx.array) -> mx.array:
            return unpatchify(cut.in_chunks(lambda x: self.conv_out(self.norm_out(x)), x), size)

        tokens = []
        for span in x.spans():  # not `each`, for the noisy pixels are needed once more
            tokens.append(begun(x.between(*span)))
            cut.settle(tokens[-1])
        clip = Clip(tokens)
        del tokens
        for block in self.diff_blocks:
            clip = block(clip, context, modulation, cut)
        return clip.each(finished, cut)

    def features(self, x: mx.array) -> list[mx.array]:
        """What each stage but the last hands to the next, `[B, T, H, W, C]`, frames appended."""
        self.check_input(x)
        clip, maps = self._entered(x), []
        for stage, upsample in enumerate(self.upsamples):
            maps.append(upsample(self.stage(stage, clip, WHOLE)).whole())
            clip = Clip(maps[-1:])
        return maps

    def _entered(self, latents: mx.array) -> Clip:
        """Tokens of the first stage, copies of the last frame after them."""
        last = mx.repeat(latents[:, -1:], self.config.ghosts, axis=1)
        x = mx.concatenate([latents, last], axis=1)
        return Clip([self.conv_in(x.astype(self.conv_in.bias.dtype))])

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn the published file's or diffusers' weights into ours; gates are folded in."""
        return own_names(weights)

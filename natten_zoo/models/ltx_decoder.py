"""The video decoder of LTX-2.5: from latents to frames, by 3-D neighborhood attention alone.

Lightricks, LTX-2.5, https://huggingface.co/Lightricks/LTX-2.5; computed as diffusers 0.42.1 does
(`LTX2VideoDiffusionDecoderModel`, Apache-2.0). Four stages make a context of the latents, each
finer than the one before; a fifth removes noise from the pixels, told of the context, in one step
or several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .base import Config, Model
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
from .ltx_names import arguments_of_diffusers, own_names

PREDICTIONS = ("x0", "v")
Size = tuple[int, int, int]
Cuts = Sequence[Cut]


@dataclass(frozen=True)
class LTXDecoderConfig(Config):
    """Configuration of an LTX decoder: that of LTX-2.5 by default.

    Args:
        in_chans: Channels of the latents.
        out_chans: Channels of the pixels.
        patch_size: Pixels per token of the last stage, in height and width.
        head_dim: Channels of an attention head.
        widths: Channels of each of the stages, the diffusion stage last.
        depths: Blocks of each stage.
        kernel_sizes: Windows of each stage: frames, rows, columns.
        strides: What each stage but the last is finer by, at its end, per axis.
        reductions: What channels are divided by there, before they are spread out.
        time_dim: Channels of the vector of a time.
        time_scale: Factor of a time before its cosines and sines.
        prediction: What the last stage predicts: the clean pixels (``"x0"``) or the velocity.
        num_steps: Steps of the diffusion, unless a call says otherwise.
        scaling_factor: What normalized latents were multiplied by.

    Raises:
        ValueError: Numbers do not go together.
    """

    in_chans: int = 128
    out_chans: int = 3
    patch_size: int = 4
    head_dim: int = 64
    widths: tuple[int, ...] = (2048, 1024, 512, 512, 256)
    depths: tuple[int, ...] = (4, 6, 4, 2, 8)
    kernel_sizes: tuple[Size, ...] = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5), (11, 11, 11))
    strides: tuple[Size, ...] = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2))
    reductions: tuple[int, ...] = (2, 2, 1, 2)
    time_dim: int = 384
    time_scale: float = 1000.0
    prediction: str = "x0"
    num_steps: int = 1
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = len(self.widths)
        for name, wanted in (("depths", stages), ("kernel_sizes", stages), ("strides", stages - 1),
                             ("reductions", stages - 1)):  # fmt: skip
            value = getattr(self, name)
            if stages < 3 or not isinstance(value, tuple) or len(value) != wanted:
                raise _wrong(name, f"one entry for each of 'widths', {self.widths}", value)
        if self.prediction not in PREDICTIONS:
            raise _wrong("prediction", " or ".join(map(repr, PREDICTIONS)), self.prediction)
        for name in ("head_dim", "num_steps", "time_dim", "out_chans"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise _wrong(name, "a positive integer", value)
        for (width, finer), stride, reduction in zip(
            pairwise(self.widths), self.strides, self.reductions, strict=True
        ):
            if width % self.head_dim or width != finer * reduction:
                raise _wrong("widths", f"multiples of 'head_dim' {self.head_dim} that 'reductions' "
                             f"{self.reductions} make of each other", self.widths)  # fmt: skip
            if len(stride) != 3 or stride[0] not in (1, 2) or min(stride) < 1:
                raise _wrong("strides", "three each, the first 1 or 2", self.strides)

    @property
    def ratio(self) -> Size:
        """Frames, rows and columns of pixels for each of the latents, but for the first frame."""
        time, height, width = map(math.prod, zip(*self.strides, strict=True))
        return time, height * self.patch_size, width * self.patch_size

    @property
    def ghosts(self) -> int:
        """Copies of the last frame that are appended and cut off again.

        Windows are moved inwards at the end; so this happens in what is cut off.
        """
        return self.kernel_sizes[0][0] // 2 * 2

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> LTXDecoderConfig:
        """Read the ``config.json`` of diffusers' ``LTX2VideoDiffusionDecoderModel``.

        Raises:
            ValueError: It asks for what is not computed here.
        """
        made = cls.from_dict(arguments_of_diffusers(config))
        for name, ratio in (("temporal", made.ratio[0]), ("spatial", made.ratio[1])):
            value = config.get(f"{name}_compression_ratio", ratio)
            if value != ratio:
                raise ValueError(f"'{name}_compression_ratio' must be {ratio} but got {value!r}")
        return made

    def size_of(self, latents: Sequence[int]) -> Size:
        """Frames, rows and columns of pixels that latents of a size become.

        Examples:
            >>> LTXDecoderConfig().size_of((16, 16, 24))
            (121, 512, 768)
        """
        time, height, width = self.ratio
        return time * (latents[0] - 1) + 1, latents[1] * height, latents[2] * width

    def tokens(self, latents: Sequence[int]) -> list[Size]:
        """Frames, rows and columns of each stage, appended frames among those of the first ones."""
        sizes = [(latents[0] + self.ghosts, latents[1], latents[2])]
        for st, sh, sw in self.strides:
            frames, height, width = sizes[-1]
            sizes.append((st * frames - (st == 2), sh * height, sw * width))
        frames, height, width = self.size_of(latents)
        return [*sizes[:-1], (frames, height // self.patch_size, width // self.patch_size)]

    @property
    def smallest(self) -> Size:
        """The smallest latents in which each stage's windows fit."""
        found = [1, 1, 1]
        for axis in range(3):
            while any(
                size[axis] < kernel[axis]
                for size, kernel in zip(self.tokens(found), self.kernel_sizes, strict=True)
            ):
                found[axis] += 1
        return found[0], found[1], found[2]


class LTXDecoder(Model):
    """Diffusion decoder of video latents.

    Args:
        config: The model's configuration.

    Shape:
        - Input: ``[batch, frames, height, width, in_chans]``, latents that are not normalized, at
          least 3 x 7 x 7 of LTX-2.5's.
        - Noise, optional: ``[batch, *pixels, out_chans]``, standard normal.
        - Output: ``[batch, *pixels, out_chans]``, about -1..1, where ``pixels`` are
          ``config.size_of`` the latents: 8 frames for each after the first, 32 x 32 pixels.

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
        """Decode latents; memory grows with their size unless ``cuts`` has an entry per stage."""
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
            noise: ``[batch, frames, height, width, out_chans]``; it is used up.
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
        """What each stage but the last hands to the next, ``[B, T, H, W, C]``, frames appended."""
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


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"[LTXDecoderConfig] '{name}' must be {wanted} but got {value!r}.")

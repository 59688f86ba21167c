"""The sizes of an LTX video decoder, stage by stage; see [`natten_zoo.models.ltx_decoder`][]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .base import Config
from .ltx_names import arguments_of_diffusers

PREDICTIONS = ("x0", "v")
Size = tuple[int, int, int]


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
        prediction: What the last stage predicts: the clean pixels (`"x0"`) or the velocity.
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
        """Read the `config.json` of diffusers' `LTX2VideoDiffusionDecoderModel`.

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


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"[LTXDecoderConfig] '{name}' must be {wanted} but got {value!r}.")

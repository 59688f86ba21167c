"""What a stage of LTX-2.5's decoder takes while it is at work, and how it is cut to fit.

Counted are MLX's arrays, in units of `u(n)`: the bytes of `n` frames of a stage's tokens. While
a block is at work, these are there:

* the weights, the stage's tokens, and in the last stage the context and the noise;
* of a slab of `n` frames that sees `m`, cut into `g` groups of heads: `5 u(m) / g` for
  queries, keys, values and what becomes of them (where no kernel runs but MLX's operations,
  `6 u(m) / g + 2 u(m)`, and twice that in half precision on a CPU, which computes in float32),
  `u(m) (g - 1) / g` for groups that are done, and `u(m)` for the frames themselves, if they are
  not all; or, after the attention, `3 u(n)`;
* beside the tokens, those slabs before the current one that the block has replaced but still sees;
* one chunk of tokens in the wide layers, in 24 times its channels;
* or, at the end of a stage, the next one's tokens or the pixels, and two more slabs of them.

`tests/tasks/test_video_memory.py` holds measured peaks against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from ..models import LTXDecoderConfig
from ..models.clip import Cut
from ..ops.backend import explain
from ..ops.functional import attend
from ..ops.neighborhood import Neighborhood

# Of those of a slab: what attention takes in each group of heads, and beside that.
BY_KERNEL, BY_OPERATIONS = (5, 0), (6, 2)
CHUNK = 24  # of those of a token, in float32
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Stage:
    """One stage at work on something of some size.

    Attributes:
        size: Frames, rows and columns.
        width: Channels.
        heads: Attention heads.
        kernel: Frames of its window.
        batch: Videos.
        itemsize: Bytes of a number.
        held: Bytes of what is there beside its tokens.
        grown: Bytes of what its tokens become, slab by slab: the next stage's, or pixels.
        attention: How many times the tokens of a slab its attention takes, divided by the groups of
            heads, and beside that.
    """

    size: Size
    width: int
    heads: int
    kernel: int
    batch: int
    itemsize: int
    held: int
    grown: int
    attention: tuple[int, int]

    def unit(self, frames: int) -> int:
        """Bytes of some frames of its tokens."""
        return self.batch * frames * math.prod(self.size[1:]) * self.width * self.itemsize

    def peak(self, cut: Cut) -> int:
        """Bytes in use at most."""
        length, frames = self.size[0], cut.frames or self.size[0]
        seen = min(frames + self.kernel - 1, length)
        shared, beside = self.attention
        attention = self.unit(seen) * (shared + beside * cut.groups + cut.groups - 1) // cut.groups
        kept = 0
        if frames < length:
            attention += self.unit(seen)
            kept = self.unit(min(-(-(self.kernel // 2) // frames) * frames, length))
        tokens = min(cut.tokens, self.batch * math.prod(self.size))
        chunk = tokens * CHUNK * self.width * 4
        block = max(attention, 3 * self.unit(frames) + chunk) + kept
        upsample = self.grown + 2 * self.grown * frames // length
        return self.held + self.unit(length) + max(block, upsample)

    def redundancy(self, cut: Cut) -> float:
        """How often attention is computed on average, for slabs see what others are of."""
        hood, length, total = Neighborhood.of(1, self.kernel), self.size[0], 0
        frames = cut.frames or length
        for start in range(0, length, frames):
            first, count = hood.window(0, min(start + frames, length) - 1, length)
            total += int(first + count - hood.window(0, start, length)[0])
        return total / length

    def cut(self, budget: float, tokens: int) -> Cut | None:
        """The cut that does least twice, of those that fit; None if none does."""
        found = []
        for groups in (n for n in range(1, self.heads + 1) if self.heads % n == 0):
            for frames in _lengths(self.size[0]):
                cut = Cut(frames, groups, tokens)
                if self.peak(cut) <= budget:
                    found.append(cut)
                    break
        # Another group of heads costs next to nothing: tokens are normed and read once more.
        return min(found, key=lambda c: self.redundancy(c) + 0.01 * c.groups, default=None)


def attention_of(config: LTXDecoderConfig, dtype: mx.Dtype) -> tuple[int, int]:
    """What attention takes, by the tier that a small one of the last stage would run on."""
    kernel = config.kernel_sizes[-1]
    x = mx.zeros((1, *(n + 1 for n in kernel), 1, config.head_dim), dtype)
    found = explain(attend, Neighborhood.of(3, kernel), x, x, x, op="na3d")
    if all(each.tier != "pure" for each in found):
        return BY_KERNEL
    wide = dtype != mx.float32 and mx.default_device() == mx.Device(mx.cpu)
    return BY_OPERATIONS[0] * (1 + wide), BY_OPERATIONS[1] * (1 + wide)


def _lengths(frames: int) -> list[int]:
    """Lengths of slabs, from all frames down to one, without those that make no fewer slabs."""
    return sorted({-(-frames // count) for count in range(1, frames + 1)}, reverse=True)

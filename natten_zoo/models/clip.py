"""Feature maps of a clip, cut along time so that no more than a part is worked on at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import mlx.core as mx


@dataclass(frozen=True)
class Cut:
    """How much of a stage's work is done at once. The result is the same but for rounding.

    Args:
        frames: Frames of a slab, that is of queries whose attention is computed at once. Their
            keys lie up to `kernel_size - 1` frames further. None: all of them, and nothing is
            evaluated before it is asked for, so that gradients can be taken.
        groups: Parts into which the heads are divided, each after the other; divides their number.
        tokens: How many go through linear layers at once.
        done: Called with the number of tokens that a block is done with, for progress.
    """

    frames: int | None = None
    groups: int = 1
    tokens: int = 16_384
    done: Callable[[int], object] | None = field(default=None, compare=False)

    def settle(self, *arrays: mx.array) -> None:
        """Evaluate what is needed later, so that what it was made of is let go."""
        if self.frames is not None:
            mx.eval(*arrays)

    def in_chunks(self, function: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
        """Apply a function of single tokens, some of them at a time.

        Args:
            function: Of `[tokens, channels]` for each of the arrays, to the same.
            arrays: `[*shape, channels]`.
        """
        shape, flat = arrays[0].shape[:-1], [array.flatten(0, -2) for array in arrays]
        chunks = []
        for start in range(0, max(math.prod(shape), 1), self.tokens):
            chunks.append(function(*(array[start : start + self.tokens] for array in flat)))
            self.settle(chunks[-1])
        return mx.concatenate(chunks).reshape(*shape, chunks[0].shape[-1])


WHOLE = Cut()


class Clip:
    """Slabs `[batch, frames, height, width, channels]` of one feature map, in their order.

    A slab can be let go while those after it are still needed.
    """

    def __init__(self, slabs: Iterable[mx.array]) -> None:
        self._slabs: list[mx.array | None] = list(slabs)
        lengths = [slab.shape[1] for slab in self._slabs if slab is not None]
        self._bounds = [0, *accumulate(lengths)]

    @property
    def frames(self) -> int:
        """Frames of the whole clip."""
        return self._bounds[-1]

    def spans(self) -> Iterator[tuple[int, int]]:
        """First frame of each slab, and that after its last."""
        return pairwise(self._bounds)

    def between(self, first: int, last: int) -> mx.array:
        """The frames `first` to `last`, that excluded.

        Raises:
            ValueError: Some of them were let go.
        """
        parts = []
        for slab, (start, stop) in zip(self._slabs, self.spans(), strict=True):
            if start < last and stop > first:
                if slab is None:
                    raise ValueError(f"[Clip] frames {start} to {stop} were let go.")
                parts.append(slab[:, max(first - start, 0) : last - start])
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def release(self, before: int) -> None:
        """Let go the slabs that end at a frame or before it."""
        for index, (_, stop) in enumerate(self.spans()):
            if stop <= before:
                self._slabs[index] = None

    def take(self) -> Iterator[mx.array]:
        """The slabs, each let go by the clip when it is handed out."""
        for start, stop in self.spans():
            slab = self.between(start, stop)
            self.release(stop)
            yield slab

    def each(self, function: Callable[..., mx.array], cut: Cut, *others: Clip) -> Clip:
        """Replace each slab by what a function makes of it and of the same frames of others."""
        done = []
        for start, stop in self.spans():
            beside = [other.between(start, stop) for other in others]
            done.append(function(self.between(start, stop), *beside))
            cut.settle(done[-1])
            self.release(stop)
        return Clip(done)

    def recut(self, frames: int | None, end: int | None = None) -> Clip:
        """The clip up to a frame in slabs of another length; this one is used up."""
        end = self.frames if end is None else end
        length = frames or end
        slabs = []
        for first in range(0, end, length):
            slabs.append(self.between(first, min(first + length, end)))
            if frames is not None:
                slabs[-1] = mx.contiguous(slabs[-1])
                mx.eval(slabs[-1])
            self.release(first + length)
        return Clip(slabs)

    def whole(self) -> mx.array:
        """All frames in one array."""
        return self.between(0, self.frames)

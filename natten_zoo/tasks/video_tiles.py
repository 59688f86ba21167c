"""LTX-2.5's decoder on overlapping tiles that are cross-faded, by the reference's rules.

Memory is then that of a tile, but near the seams frames differ from those that are decoded whole,
for a tile does not see over its border. The first stages always see everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..models import LTXDecoder, LTXDecoderConfig
from ..models.clip import Clip, Cut

Interval = tuple[int, int]
Size = tuple[int, int, int]
Draw = Callable[[Sequence[int]], mx.array]


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles, in frames, rows and columns of the decoded video.

    Args:
        size: Of a tile.
        step: From one tile to the next; what is left of `size` is the overlap that is faded.

    Raises:
        ValueError: A step is not positive or larger than the tile.
    """

    size: Size = (80, 768, 768)
    step: Size = (56, 704, 704)

    def __post_init__(self) -> None:
        for size, step in zip(self.size, self.step, strict=True):
            if not 0 < step <= size:
                raise ValueError(
                    f"[Tiling] 'step' must be positive and at most 'size' {self.size} but got "
                    f"{self.step}."
                )

    def cells(self, config: LTXDecoderConfig) -> tuple[Size, Size]:
        """Tile and step in cells of the grid, rounded down.

        Raises:
            ValueError: A tile is smaller than the windows that it must hold, or a step than a cell.
        """
        cell, least = cell_of(config), least_tile(config)
        tile, step = (
            tuple(n // c for n, c in zip(sizes, cell, strict=True))
            for sizes in (self.size, self.step)
        )
        if any(n < m for n, m in zip(tile, least, strict=True)) or min(step) < 1:
            pixels = tuple(n * c for n, c in zip(least, cell, strict=True))
            raise ValueError(
                f"[Tiling] 'size' must be at least {pixels} and 'step' at least {cell} but got "
                f"{self.size} and {self.step}."
            )
        return (tile[0], tile[1], tile[2]), (step[0], step[1], step[2])


def cell_of(config: LTXDecoderConfig) -> Size:
    """Frames, rows and columns of pixels of a cell of the grid that is tiled."""
    time, height, width = config.strides[-1]
    return time, height * config.patch_size, width * config.patch_size


def least_tile(config: LTXDecoderConfig) -> Size:
    """The fewest cells of a tile in which the windows of both stages fit."""
    axes = zip(*config.kernel_sizes[-2:], config.strides[-1], strict=True)
    time, height, width = (max(coarse, -(-fine // stride)) for coarse, fine, stride in axes)
    return time, height, width


def intervals(length: int, tile: int, step: int, least: int) -> list[Interval]:
    """Where the tiles of an axis lie; none begins so late that it would be too small.

    Examples:
        >>> intervals(61, tile=40, step=28, least=6)
        [(0, 40), (28, 61)]
        >>> intervals(31, tile=12, step=10, least=3)
        [(0, 12), (10, 22), (20, 31)]
    """
    if length <= tile:
        return [(0, length)]
    starts = [start for start in range(0, length, step) if length - start >= least]
    ends = [min(start + tile, length) for start in starts[:-1]]
    return list(zip(starts, [*ends, length], strict=True))


def decode_tiles(
    model: LTXDecoder,
    grid: mx.array,
    tiling: Tiling,
    cuts: Sequence[Cut],
    draw: Draw,
    steps: int,
) -> Iterator[mx.array]:
    """Decode the grid tile by tile.

    Args:
        model: The decoder.
        grid: What `model.grid` returned, appended frames included.
        tiling: Sizes.
        cuts: How much of a tile is done at once, per stage.
        draw: Given a shape, noise `[batch, frames, height, width, out_chans]`. Each tile draws
            its own, from the first to the last along time, rows, columns; but if there are several
            steps, or the model predicts the velocity, one array is drawn of which each takes its
            part.
        steps: Of the diffusion.

    Yields:
        Consecutive frames `[batch, frames, height, width, out_chans]`.
    """
    config = model.config
    (time, *tile), (time_step, *step) = tiling.cells(config)
    least = least_tile(config)
    st = config.strides[-1][0]
    ghosts = config.ghosts * config.ratio[0]
    frames = grid.shape[1] - ghosts // st
    times = intervals(frames, time, time_step, least[0])
    heights, widths = (
        intervals(*sizes) for sizes in zip(grid.shape[2:4], tile, step, least[1:], strict=True)
    )
    cell = cell_of(config)
    pixels = (frames * st - (st == 2), grid.shape[2] * cell[1], grid.shape[3] * cell[2])
    whole = None
    if steps > 1 or config.prediction != "x0":
        whole = draw((grid.shape[0], *pixels, config.out_chans))

    def decoded(place: tuple[Interval, Interval, Interval]) -> mx.array:
        (t0, t1), (h0, h1), (w0, w1) = place
        last = t1 == frames
        part = grid[:, t0 : grid.shape[1] if last else t1, h0:h1, w0:w1]
        context = model.context(Clip([part]), cuts, first=t0 == 0, ghosts=ghosts * last)
        rows, columns = slice(h0 * cell[1], h1 * cell[1]), slice(w0 * cell[2], w1 * cell[2])
        if whole is None:
            shape = rows.stop - rows.start, columns.stop - columns.start
            noise = Clip([draw((grid.shape[0], context.frames, *shape, config.out_chans))])
        else:
            first = t0 * st - (st == 2 and t0 > 0)
            noise = Clip([whole[:, first : first + context.frames, rows, columns]])
        out = model.denoise(noise, context, steps, cuts[-1]).astype(mx.float32)
        mx.eval(out)
        return out

    overlap = [(n - s) * c for n, s, c in zip((time, *tile), (time_step, *step), cell, strict=True)]
    before: mx.array | None = None
    for index, span in enumerate(times):
        group = _joined(
            [[decoded((span, height, width)) for width in widths] for height in heights],
            overlap[1:],
            [n * c for n, c in zip(step, cell[1:], strict=True)],
        )
        if before is not None:
            group = faded(before, group, 1, overlap[0])
        kept = time_step * st - (st == 2 and index == 0)
        mx.eval(group)
        before = group
        yield group if index == len(times) - 1 else group[:, :kept]


def _joined(tiles: list[list[mx.array]], overlap: Sequence[int], step: Sequence[int]) -> mx.array:
    """One picture of rows of tiles, each faded into that above, then that to the left."""
    for i, row in enumerate(tiles):
        for j in range(len(row)):
            if i:
                row[j] = faded(tiles[i - 1][j], row[j], 2, overlap[0])
            if j:
                row[j] = faded(row[j - 1], row[j], 3, overlap[1])
    cut = [[tile[:, :, :, : step[1]] for tile in row[:-1]] + row[-1:] for row in tiles]
    rows = [mx.concatenate(row, axis=3) for row in cut]
    return mx.concatenate([row[:, :, : step[0]] for row in rows[:-1]] + rows[-1:], axis=2)


def faded(old: mx.array, new: mx.array, axis: int, overlap: int) -> mx.array:
    """The new tile, whose beginning grows out of the old one's end along an axis.

    Examples:
        >>> faded(mx.ones(4), mx.zeros(5), 0, overlap=2).tolist()
        [1.0, 0.5, 0.0, 0.0, 0.0]
    """
    overlap = min(overlap, old.shape[axis], new.shape[axis])
    shape = [-1 if a == axis else 1 for a in range(new.ndim)]
    weight = (mx.arange(overlap) / max(overlap, 1)).reshape(shape)
    end = mx.split(old, [old.shape[axis] - overlap], axis=axis)[1]
    begin, rest = mx.split(new, [overlap], axis=axis)
    return mx.concatenate([end * (1 - weight) + begin * weight, rest], axis=axis)

"""How LTX-2.5's decoder is cut up to fit into memory, by a model of what each stage takes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..models import LTXDecoder, LTXDecoderConfig
from ..models.clip import Cut
from .video_stage import Stage, attention_of
from .video_tiles import Tiling, cell_of, intervals, least_tile

CHUNKS = (16_384, 8192, 4096, 2048, 1024)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Plan:
    """How a video is decoded.

    Attributes:
        cuts: How much of each stage's work is done at once.
        tiling: The tiles, if there are any.
        peak: Bytes that are in use at most, by the model.
        macs: Multiply-adds, without those that slabs and overlaps do again.
        redundancy: How often the last stage's attention is computed, on average: slabs see more
            frames than they are of, and tiles overlap.
    """

    cuts: tuple[Cut, ...]
    tiling: Tiling | None
    peak: int
    macs: int
    redundancy: float

    def __str__(self) -> str:
        way = "whole"
        if self.tiling is not None:
            way = f"in tiles of {' x '.join(map(str, self.tiling.size))}"
        last = self.cuts[-1]
        slabs = f"slabs of {last.frames} frames" if last.frames else "no slabs"
        groups = f"{last.groups} groups of heads" if last.groups > 1 else "all heads at once"
        work = f", attention {self.redundancy:.1f} times" if self.redundancy > 1.05 else ""
        return f"{way}, in {slabs} with {groups}{work}, in up to {self.peak / 1e9:.1f} GB"

    def counted(self, costs: Sequence[int], each: Callable[[int], object]) -> tuple[Cut, ...]:
        """The cuts, such that each slab that is done is told in multiply-adds."""

        def told(cost: int) -> Callable[[int], object]:
            return lambda tokens: each(tokens * cost)

        pairs = zip(self.cuts, costs, strict=True)
        return tuple(replace(cut, done=told(cost)) for cut, cost in pairs)


def plan_decoding(
    model: LTXDecoder,
    latents: Sequence[int],
    memory: int | None = None,
    tiling: Tiling | bool | None = None,
    *,
    batch: int = 1,
    steps: int | None = None,
) -> Plan:
    """Choose how a video is decoded within a budget of memory.

    Args:
        model: The decoder; its weights and their dtype count.
        latents: Frames, rows and columns of the latents.
        memory: Bytes. Default: any number.
        tiling: The tiles; True for those of which least is computed again, up to the reference's
            size. Default: none, so that the result is that of the whole.
        batch: Videos.
        steps: Of the diffusion. Default: the model's.

    Raises:
        ValueError: It does not fit; the message says how much it takes.

    Examples:
        >>> from natten_zoo import create_model
        >>> model = create_model("ltx_2_5_decoder")
        >>> model.set_dtype(mx.bfloat16)
        >>> plan = plan_decoding(model, (16, 16, 24), memory=12 * 10**9)
        >>> plan.tiling is None, plan.peak < 12 * 10**9
        (True, True)
    """
    steps = steps or model.config.num_steps
    budget = math.inf if memory is None else memory
    least, plans = math.inf, []
    for choice in _tilings(tiling, model.config):
        for tokens in CHUNKS:
            stages = _stages(model, latents, batch, choice, steps)
            cuts = [cut for stage in stages if (cut := stage.cut(budget, tokens)) is not None]
            if len(cuts) == len(stages):
                peak = max(stage.peak(cut) for stage, cut in zip(stages, cuts, strict=True))
                macs = batch * _macs(model.config, latents, steps)
                again = stages[-1].redundancy(cuts[-1]) * _overlap(model.config, latents, choice)
                plans.append(Plan(tuple(cuts), choice, peak, macs, again))
            least = min(least, max(s.peak(Cut(1, s.heads, tokens)) for s in stages))
    if plans:
        return min(plans, key=lambda plan: plan.redundancy)
    frames, height, width = model.config.size_of(latents)
    way = "without tiles; with 'tiling' it takes less" if not tiling else "even in tiles"
    raise ValueError(
        f"[decode_video] 'memory' must be at least {least / 1e9:.2f} GB for {frames} frames of "
        f"{width} x {height} pixels {way}, but got {(memory or 0) / 1e9:.2f} GB."
    )


def usable_memory() -> int:
    """Bytes that a model may take: what Metal recommends, half of the memory elsewhere."""
    if mx.default_device() == mx.Device(mx.gpu):
        facts = mx.device_info()
        if recommended := facts.get("max_recommended_working_set_size"):
            return int(recommended)
        if total := facts.get("total_memory", facts.get("memory_size")):
            return int(total) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parse_bytes(text: str) -> int:
    """Bytes, of a number with a unit.

    Raises:
        ValueError: It is none, or not positive.

    Examples:
        >>> parse_bytes("8GB"), parse_bytes("1.5 GiB")
        (8000000000, 1610612736)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?", text.strip().lower())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if not size:
        raise ValueError(f"[parse_bytes] 'text' must be like 8GB or 500MB but got {text!r}.")
    return size


def costs(config: LTXDecoderConfig) -> list[int]:
    """Multiply-adds per token of one block of each stage."""
    last = len(config.widths) - 1
    return [
        width * width * (16 + (stage == last)) + 2 * math.prod(kernel) * width
        for stage, (width, kernel) in enumerate(
            zip(config.widths, config.kernel_sizes, strict=True)
        )
    ]


def _macs(config: LTXDecoderConfig, latents: Sequence[int], steps: int) -> int:
    tokens, depths = map(math.prod, config.tokens(latents)), list(config.depths)
    depths[-1] *= steps
    return sum(n * d * c for n, d, c in zip(tokens, depths, costs(config), strict=True))


def _tilings(tiling: Tiling | bool | None, config: LTXDecoderConfig) -> Iterator[Tiling | None]:
    """Those to try, from the largest."""
    if not isinstance(tiling, bool):
        yield tiling
    elif not tiling:
        yield None
    else:
        default = Tiling()
        overlap = [size - step for size, step in zip(default.size, default.step, strict=True)]
        least = [n * c for n, c in zip(least_tile(config), cell_of(config), strict=True)]
        for side in (768, 640, 512, 448, 384, 320, 256, 192):
            for frames in (80, 48):
                size = max(frames, least[0]), max(side, least[1]), max(side, least[2])
                step = tuple(max(n - o, n // 2) for n, o in zip(size, overlap, strict=True))
                yield Tiling(size, (step[0], step[1], step[2]))


def _stages(
    model: LTXDecoder, latents: Sequence[int], batch: int, tiling: Tiling | None, steps: int
) -> list[Stage]:
    config = model.config
    parameters: Any = tree_flatten(model.parameters())  # type: ignore[no-untyped-call]
    weights = sum(value.nbytes for _, value in parameters)
    itemsize = model.conv_in.bias.dtype.size
    sizes, held = config.tokens(latents), [weights] * len(config.widths)
    video = batch * math.prod(config.size_of(latents)) * config.out_chans
    if tiling is not None:
        (time, *tile), _ = tiling.cells(config)
        grid, fine = sizes[-2], config.strides[-1]
        ghosts = config.ghosts * config.ratio[0] // fine[0]
        part = (min(time + ghosts, grid[0]), min(tile[0], grid[1]), min(tile[1], grid[2]))
        whole_grid = batch * math.prod(grid) * config.widths[-2] * itemsize
        group = video * min(time * fine[0] / config.size_of(latents)[0], 1) * 4 * 3
        noise = 0 if steps == 1 and config.prediction == "x0" else video * itemsize
        sizes[-2:] = [part, (part[0] * fine[0], part[1] * fine[1], part[2] * fine[2])]
        for index in (-2, -1):
            held[index] += whole_grid + video + int(group) + noise
    last = batch * math.prod(sizes[-1]) * itemsize
    pixels = last * config.out_chans * config.patch_size**2
    held[-1] += last * config.widths[-1] + pixels * min(steps, 2)
    grown = [
        batch * math.prod(size) * math.prod(stride) * width * itemsize
        for size, stride, width in zip(sizes, config.strides, config.widths[1:], strict=False)
    ]
    taken = attention_of(config, model.conv_in.bias.dtype)
    columns = sizes, config.widths, config.kernel_sizes, held, [*grown, pixels]
    return [
        Stage(size, width, width // config.head_dim, kernel[0], batch, itemsize, rest, after, taken)
        for size, width, kernel, rest, after in zip(*columns, strict=True)
    ]


def _overlap(config: LTXDecoderConfig, latents: Sequence[int], tiling: Tiling | None) -> float:
    """How often a cell of the grid is in a tile, on average."""
    if tiling is None:
        return 1.0
    grid = config.tokens(latents)[-2]
    frames = grid[0] - config.ghosts * config.ratio[0] // config.strides[-1][0]
    share = 1.0
    for length, *sizes in zip(
        (frames, *grid[1:]), *tiling.cells(config), least_tile(config), strict=True
    ):
        share *= sum(stop - start for start, stop in intervals(length, *sizes)) / length
    return share

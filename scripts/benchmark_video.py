"""Times the attention of LTX-2.5's last stage, beside dense masks and beside slabs of rows.

    python scripts/benchmark_video.py --sizes 12,16,16 16,24,24

Four heads of 64 channels, windows of 11 x 11 x 11. `natten_zoo` is `na3d` on the tier that it
chooses; `dense mask` is MLX's attention of all tokens with all, with a mask; `slabs` what ports
without such an operator write: for each few frames and rows the keys around them are cut out, and
MLX's attention masks those outside a window. Contestants take turns, round by round, in an order
that changes; the median round counts. Memory is the peak above the inputs, as MLX counts it.

121 frames of 768 x 512 pixels are --sizes 121,128,192: no dense mask has room there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx
import numpy as np
from mlx.core.fast import scaled_dot_product_attention

from natten_zoo import ops
from natten_zoo.cli._results import ABOUT, append

COLUMNS = ("size", "dtype", "contestant", "tokens_per_second", "time_ratio", "peak_mb", *ABOUT)
HEADS, HEAD_DIM, KERNEL = 4, 64, (11, 11, 11)
HOOD = ops.Neighborhood.of(3, KERNEL)
SLAB = (4, 4)  # frames and rows at once
DENSE_TOKENS = 20_000  # above that a mask of all pairs takes gigabytes
Attention = Callable[[mx.array, mx.array, mx.array], mx.array]


def natten_zoo(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """The operator."""
    return ops.na3d(query, key, value, KERNEL)


def seen(axis: int, length: int, first: int, last: int) -> tuple[slice, np.ndarray]:
    """The keys that some queries of an axis see, and who of them sees which."""
    mask = HOOD.mask(axis, length)[first:last]
    keys = np.flatnonzero(mask.any(0))
    span = slice(int(keys[0]), int(keys[-1]) + 1)
    return span, mask[:, span]


def masked(
    query: mx.array, key: mx.array, value: mx.array, masks: Sequence[np.ndarray]
) -> mx.array:
    """MLX's attention of arrays `[B, T, H, W, heads, d]`, with a mask per axis."""
    time, row, column = map(mx.array, masks)
    mask = (
        time[:, None, None, :, None, None]
        & row[:, None, None, :, None]
        & column[:, None, None, :]
    )  # [T, H, W, T', H', W']  # fmt: skip
    mask = mask.flatten(0, 2).flatten(1)
    q, k, v = (x.flatten(1, 3).swapaxes(1, 2) for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5, mask=mask)
    return out.swapaxes(1, 2).reshape(query.shape)


def dense(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """All tokens with all, with a mask."""
    return masked(query, key, value, [HOOD.mask(a, n) for a, n in enumerate(query.shape[1:4])])


def slabs(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """A few frames and rows at a time, with the keys around them."""
    frames, rows, columns = query.shape[1:4]
    width = HOOD.mask(2, columns)
    parts = []
    for t in range(0, frames, SLAB[0]):
        row = []
        for h in range(0, rows, SLAB[1]):
            (ts, time_mask), (hs, row_mask) = (
                seen(0, frames, t, t + SLAB[0]),
                seen(1, rows, h, h + SLAB[1]),
            )
            part = query[:, t : t + SLAB[0], h : h + SLAB[1]]
            row.append(masked(part, key[:, ts, hs], value[:, ts, hs], (time_mask, row_mask, width)))
            mx.eval(row[-1])
        parts.append(mx.concatenate(row, axis=2))
    return mx.concatenate(parts, axis=1)


def measure(size: Sequence[int], dtype: mx.Dtype, rounds: int, table: Path | None) -> None:
    """Print one line per contestant, and add it to a table if there is one."""
    arrays = [mx.random.normal((1, *size, HEADS, HEAD_DIM)).astype(dtype) for _ in range(3)]
    mx.eval(arrays)
    tokens = int(np.prod(size))
    chosen: dict[str, Attention] = {"natten_zoo": natten_zoo, "slabs": slabs}
    if tokens <= DENSE_TOKENS:
        chosen["dense mask"] = dense
    expected = natten_zoo(*arrays)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    peaks = dict.fromkeys(chosen, 0)
    for turn, name in product(range(rounds + 1), chosen):
        name = list(chosen)[(list(chosen).index(name) + turn) % len(chosen)]
        mx.clear_cache()
        mx.reset_peak_memory()
        held, start = mx.get_active_memory(), time.perf_counter()
        out = chosen[name](*arrays)
        mx.eval(out)
        if turn:  # the first warms up
            seconds[name].append(time.perf_counter() - start)
        peaks[name] = max(peaks[name], mx.get_peak_memory() - held)
        error = mx.abs(out - expected).max().item()
        assert error < (1e-4 if dtype == mx.float32 else 2e-2), f"{name} is off by {error}"
        del out
    best = statistics.median(seconds["natten_zoo"])
    shown = {"size": " x ".join(map(str, size)), "dtype": str(dtype).replace("mlx.core.", "")}
    print(f"{shown['size']}, {tokens:,} tokens, {shown['dtype']}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:12} {tokens / median:12,.0f} tokens/s  {median / best:6.2f} x the time  "
              f"{peaks[name] / 1e6:8,.0f} MB")  # fmt: skip
        if table:
            append(
                table,
                COLUMNS,
                **shown,
                contestant=name,
                tokens_per_second=f"{tokens / median:.0f}",
                time_ratio=f"{median / best:.2f}",
                peak_mb=f"{peaks[name] / 1e6:.0f}",
            )


def main() -> None:
    """Reads the arguments, measures every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["12,16,16", "16,24,24"], metavar="T,H,W", help="tokens"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="append a line per contestant to this table")
    args = parser.parse_args()
    for text in args.sizes:
        size = tuple(map(int, text.split(",")))
        measure(size, getattr(mx, args.dtype), args.rounds, args.csv)


if __name__ == "__main__":
    main()

"""Times what NAF does between its encoder and its output, before and after queries could be finer.

    python scripts/benchmark_naf.py --sizes 32,512 64,1024 --channels 1024

NAF has four heads, windows of 9 x 9, 256 channels of queries and keys. ``finer queries`` is what it
does: each pixel asks the coarse cells around its own. ``upsampled`` is what its authors' code does:
keys and values are repeated to the pixels' resolution, and the window takes steps of a cell. Both
give the same numbers, which is checked. Contestants take turns, and the median round counts; memory
is the peak above the inputs, the output included, as MLX counts it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx

from natten_zoo import ops

HEADS, HEAD_DIM, KERNEL = 4, 64, 9
Attention = Callable[[mx.array, mx.array, mx.array], mx.array]


def finer_queries(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """The operator, given maps of two resolutions."""
    return ops.na2d(query, key, value, KERNEL)


def upsampled(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """The operator, given maps of one."""
    times = query.shape[1] // key.shape[1]
    key, value = (mx.repeat(mx.repeat(x, times, axis=1), times, axis=2) for x in (key, value))
    return ops.na2d(query, key, value, KERNEL, dilation=times)


CONTESTANTS: dict[str, Attention] = {"upsampled": upsampled, "finer queries": finer_queries}


def measure(cells: int, pixels: int, channels: int, dtype: mx.Dtype, rounds: int) -> None:
    """Print one line per contestant."""
    query, key, value = (
        mx.random.normal((1, side, side, HEADS, dim)).astype(dtype)
        for side, dim in ((pixels, HEAD_DIM), (cells, HEAD_DIM), (cells, channels // HEADS))
    )
    mx.eval(query, key, value)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks = dict.fromkeys(CONTESTANTS, 0)
    corners = {}
    for turn, name in product(range(rounds + 1), CONTESTANTS):
        mx.clear_cache()
        mx.reset_peak_memory()
        held, start = mx.get_active_memory(), time.perf_counter()
        out = CONTESTANTS[name](query, key, value)
        mx.eval(out)
        if turn:  # the first warms up
            seconds[name].append(time.perf_counter() - start)
        peaks[name] = max(peaks[name], mx.get_peak_memory() - held)
        corners[name] = mx.contiguous(out[:, ::37, ::41])
        mx.eval(corners[name])
        del out
    error = mx.abs(corners["upsampled"] - corners["finer queries"]).max().item()
    assert error < (1e-4 if dtype == mx.float32 else 2e-2), f"they differ by {error}"
    print(f"{cells} -> {pixels}, {channels:,} channels, {dtype}".replace("mlx.core.", ""))
    first = statistics.median(seconds["upsampled"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:14} {1e3 * median:9,.1f} ms  {median / first:5.2f} x the time  "
              f"{peaks[name] / 1e6:8,.0f} MB")  # fmt: skip


def main() -> None:
    """Reads the arguments, measures every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["32,512"], metavar="CELLS,PIXELS")
    parser.add_argument("--channels", type=int, default=1024, help="of the features")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for text in args.sizes:
        cells, pixels = map(int, text.split(","))
        measure(cells, pixels, args.channels, getattr(mx, args.dtype), args.rounds)


if __name__ == "__main__":
    main()

"""Times what NAF does between its encoder and its output, before and after queries could be finer.

    python scripts/benchmark_naf.py --sizes 32,512 64,1024 --channels 1024
    python scripts/benchmark_naf.py --sizes 32,512 --gradients

NAF has four heads, windows of 9 x 9, 256 channels of queries and keys. `finer queries` is what it
does: each pixel asks the coarse cells around its own. `upsampled` is what its authors' code does:
keys and values are repeated to the pixels' resolution, and the window takes steps of a cell.
`folded` has the pixels of a cell copied to its place, as heads, and the output back. All give the
same numbers, which is checked. Contestants take turns, and the median round counts; memory is the
peak above the inputs, the results included, as MLX counts it.
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
from tests.ops.finer import fold, unfold

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


def folded(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """The operator, given heads on the map of keys."""
    times = [n // m for n, m in zip(query.shape[1:3], key.shape[1:3], strict=True)]
    return unfold(ops.na2d(fold(query, times), key, value, KERNEL), times)


CONTESTANTS: dict[str, Attention] = {
    "upsampled": upsampled,
    "folded": folded,
    "finer queries": finer_queries,
}


def measure(args: argparse.Namespace, cells: int, pixels: int) -> None:
    """Print one line per contestant."""
    dtype, channels = getattr(mx, args.dtype), args.channels // HEADS
    shapes = [(pixels, HEAD_DIM), (cells, HEAD_DIM), (cells, channels)]
    shapes += [(pixels, channels)] if args.gradients else []  # that of the output
    arrays = [mx.random.normal((1, n, n, HEADS, dim)).astype(dtype) for n, dim in shapes]
    mx.eval(arrays)
    seconds: dict[str, list[float]] = {name: [] for name in args.contestants}
    peaks = dict.fromkeys(args.contestants, 0)
    corners = {}
    for turn, name in product(range(args.rounds + 1), args.contestants):
        mx.clear_cache()
        mx.reset_peak_memory()
        held, start = mx.get_active_memory(), time.perf_counter()
        results = computed(CONTESTANTS[name], arrays)
        if turn:  # the first warms up
            seconds[name].append(time.perf_counter() - start)
        peaks[name] = max(peaks[name], mx.get_peak_memory() - held)
        corners[name] = [mx.contiguous(x[:, ::37, ::41]) for x in results]
        mx.eval(corners[name])
        del results
    # A cell's gradients are sums over its pixels, which are added in other orders.
    check(list(corners.values()), 2e-2 if dtype != mx.float32 else 1e-3 if args.gradients else 1e-4)
    what = "forward with gradients" if args.gradients else "forward"
    print(f"{cells} -> {pixels}, {args.channels:,} channels, {args.dtype}, {what}")
    first = statistics.median(seconds[args.contestants[0]])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:14} {1e3 * median:9,.1f} ms  {median / first:5.2f} x the time  "
              f"{peaks[name] / 1e6:8,.0f} MB", flush=True)  # fmt: skip


def computed(attention: Attention, arrays: list[mx.array]) -> list[mx.array]:
    """The output; with its gradient among the arrays those of the others."""
    *given, cotangent = arrays if len(arrays) > 3 else (*arrays, None)
    if cotangent is None:
        results = [attention(*given)]
    else:
        results = mx.vjp(lambda *x: [attention(*x)], given, [cotangent])[1]
    mx.eval(results)
    return results


def check(corners: list[list[mx.array]], tolerance: float) -> None:
    """All contestants have the same numbers."""
    for several in zip(*corners, strict=True):
        largest = mx.abs(several[0]).max().item()
        error = max(mx.abs(x - several[0]).max().item() for x in several)
        assert error < tolerance * max(1, largest), f"they differ by {error} of {largest}"


def main() -> None:
    """Reads the arguments, measures every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["32,512"], metavar="CELLS,PIXELS")
    parser.add_argument("--channels", type=int, default=1024, help="of the features")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gradients", action="store_true", help="forward and backward")
    parser.add_argument(
        "--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS, metavar="NAME"
    )
    args = parser.parse_args()
    for text in args.sizes:
        cells, pixels = map(int, text.split(","))
        measure(args, cells, pixels)


if __name__ == "__main__":
    main()

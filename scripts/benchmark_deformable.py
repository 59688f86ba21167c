"""Deformable attention on a GPU: kernels beside MLX's operations, alone and in a OneFormer.

    MLX_ENABLE_TF32=0 python scripts/benchmark_deformable.py

Both are timed in one run, in turns; first both are held against each other. Weights are random,
which cost what trained ones do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

from natten_zoo import create_model
from natten_zoo.cli._results import ABOUT, append
from natten_zoo.layers import DeformableAttention
from natten_zoo.models import NATConfig, OneFormer, OneFormerConfig
from natten_zoo.ops import deformable

COLUMNS = ("side", "dtype", "part", "what", "way", "ms", "peak_mib", *ABOUT)
WAYS = {"kernels": None, "operations": "it is left out for comparison"}


@contextmanager
def way(name: str) -> Iterator[None]:
    """Samples by kernels, or by MLX's operations."""
    if WAYS[name] is None:
        yield
    else:
        with mock.patch.object(deformable, "why_not", lambda *_: WAYS[name]):
            yield


def timed(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of each, the median of rounds that take turns, and the most memory in MiB."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    peaks: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, function in functions.items() if turn % 2 else reversed(functions.items()):
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            mx.eval(function())
            if turn:  # the first builds
                times[name].append(1e3 * (time.perf_counter() - started))
            peaks[name] = mx.get_peak_memory() / 2**20
    return {name: (median(values), peaks[name]) for name, values in times.items()}


def both(function: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """A function in both ways."""

    def under(name: str) -> Callable[[], Any]:
        def call() -> Any:
            with way(name):
                result = function()
                mx.eval(result)
                return result

        return call

    return {name: under(name) for name in WAYS}


def layers(side: int, dtype: mx.Dtype, count: int = 6) -> dict[str, Callable[[], Any]]:
    """Six layers on the maps of a square image: forward, and with gradients."""
    sizes = [(side // s, side // s) for s in (32, 16, 8)]
    tokens = sum(h * w for h, w in sizes)
    layer = DeformableAttention(256)
    layer.sampling_offsets.weight = 0.02 * mx.random.normal(layer.sampling_offsets.weight.shape)
    layer.set_dtype(dtype)
    x, places = mx.random.normal((2, 1, tokens, 256)).astype(dtype)
    parameters = layer.trainable_parameters()

    def forward(parameters: Any = parameters, y: mx.array = x) -> mx.array:
        layer.update(parameters)
        for _ in range(count):
            y = layer(y, places, sizes)
        return y

    def backward() -> Any:
        return mx.grad(lambda p, y: forward(p, y).astype(mx.float32).sum(), (0, 1))(parameters, x)

    return {"forward": forward, "forward+backward": backward}


def models(side: int, dtype: mx.Dtype, small: bool) -> dict[str, Callable[[], Any]]:
    """A OneFormer on a square image: forward, and with the gradients of all weights."""
    body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
    name = "oneformer_ade20k_dinat_large" + ("_1280" if side >= 1280 else "")
    tiny = OneFormerConfig(body, 32, 32, num_queries=5, depth=1, pixel_depth=1)
    model: Any = OneFormer(tiny) if small else create_model(name)
    model.set_dtype(dtype)
    x = mx.random.normal((1, side, side, 3)).astype(dtype)
    parameters = model.trainable_parameters()

    def loss(p: Any) -> mx.array:
        model.update(p)
        found = model.all_masks(x, "panoptic")
        return sum((m.masks.astype(mx.float32).mean() for m in found), mx.array(0.0))

    return {
        "forward": lambda: model(x, "panoptic"),
        "forward+backward": lambda: mx.grad(loss)(parameters),
    }


def agree(dtype: mx.Dtype) -> None:
    """Kernels and operations on the same arrays: the largest difference, relative."""
    sizes = [(20, 20), (40, 40), (80, 80)]
    mx.random.seed(0)
    values = mx.random.normal((2, 8400, 8, 32)).astype(dtype)
    points = mx.random.uniform(-8, 90, (2, 1000, 8, 3, 4, 2))
    weights = mx.softmax(mx.random.normal(points.shape[:-1]).flatten(-2), axis=-1)
    weights = weights.reshape(points.shape[:-1]).astype(dtype)
    d_out = mx.random.normal((2, 1000, 8, 32)).astype(dtype)
    results = {}
    for name in (*WAYS, "kernels again"):
        with way(name.split()[0]):
            out = mx.vjp(
                lambda *a: deformable.sample_maps(*a, sizes), [values, points, weights], [d_out]
            )
            results[name] = [x.astype(mx.float32) for part in out for x in part]
            mx.eval(results[name])
    for what, *(a, b, c) in zip(
        ("out", "d_values", "d_points", "d_weights"), *results.values(), strict=True
    ):
        apart = float(mx.abs(a - b).max() / mx.abs(b).max())
        print(f"{dtype} {what}: {apart:.1e} apart, again the same: {mx.array_equal(a, c).item()}")


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[640, 1280])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append a line per way to this table")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try this script")
    args = parser.parse_args()
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        agree(dtype)
    for side in args.sides:
        for dtype in (mx.float32, mx.float16):
            parts = {"six layers": layers(side, dtype), "model": models(side, dtype, args.small)}
            for part, functions in parts.items():
                for what, function in functions.items():
                    result = timed(both(function), args.rounds)
                    text = "   ".join(
                        f"{name} {ms:8.2f} ms {mib:7,.0f} MiB" for name, (ms, mib) in result.items()
                    )
                    print(f"{side} {dtype} {part} {what}: {text}", flush=True)
                    for name, (ms, mib) in result.items() if args.csv else ():
                        case = {"side": side, "dtype": str(dtype), "part": part, "what": what}
                        figures = {"ms": f"{ms:.2f}", "peak_mib": f"{mib:.0f}"}
                        append(args.csv, COLUMNS, **case, way=name, **figures)


if __name__ == "__main__":
    main()

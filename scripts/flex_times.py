"""Times torch's compiled flex_attention on the shapes of gpu_check.py, which calls this.

    python scripts/flex_times.py --cases K7 --dtypes float16

Prints a row of JSON per shape and dtype as soon as it is timed. Needs torch for CUDA.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_check import SETS, SHAPES, Shape
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", choices=SHAPES, default="nat")
    parser.add_argument("--cases", default="")
    parser.add_argument("--dtypes", nargs="*", default=["float16"])
    args = parser.parse_args()
    for shape in SHAPES[args.shapes]:
        for dtype in args.dtypes if args.cases in shape.name else ():
            one = {"shape": shape.name, "dtype": dtype, "contestant": "flex"}
            try:
                one.update(times(shape, dtype))
            except Exception as error:  # of the compiler, of memory: a row that says so
                one["error"] = str(error).splitlines()[0][:200]
            print(json.dumps(one), flush=True)


def times(shape: Shape, dtype: str) -> dict[str, float]:
    """Milliseconds of forward, and of forward with backward."""
    tokens, kind = math.prod(shape.spatial), getattr(torch, dtype)
    size, count = (shape.batch, shape.heads, tokens, shape.head_dim), shape.sets
    sets = [[torch.randn(size, device="cuda", dtype=kind) for _ in "qkvg"] for _ in range(count)]
    torch.compiler.reset()
    attention = torch.compile(flex_attention, dynamic=False)
    block = create_block_mask(window_mask(shape), None, None, tokens, tokens)

    def forward(i: int) -> Any:
        with torch.no_grad():
            return attention(*sets[i % count][:3], block_mask=block)

    def both(i: int) -> Any:
        qkv = [x.requires_grad_() for x in sets[i % count][:3]]
        return torch.autograd.grad(attention(*qkv, block_mask=block), qkv, sets[i % count][3])

    return {"forward": median_ms(forward), "both": median_ms(both)}


def median_ms(function: Callable[[int], Any]) -> float:
    """Milliseconds of a call, as gpu_check.median_ms takes them."""

    def round_of(calls: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            function(i % SETS)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / calls

    round_of(4)
    calls = max(1, min(50, int(20 / round_of(4))))
    return statistics.median(round_of(calls) for _ in range(7))


def window_mask(shape: Shape) -> Callable[..., Any]:
    """A mask_mod for flex_attention: whether query token q sees key token k."""
    spatial, rank = shape.spatial, len(shape.spatial)
    kernels, strides = (
        x if isinstance(x, tuple) else (x,) * rank for x in (shape.kernel, shape.window_stride)
    )
    axes = list(zip(spatial, kernels, strides, strict=True))

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = None
        for length, size, stride in reversed(axes):
            leader = (q % length // stride * stride + stride // 2).clamp(max=length - 1)
            start = (leader - size // 2).clamp(0, length - size)
            inside = (k % length >= start) & (k % length < start + size)
            seen = inside if seen is None else seen & inside
            q, k = q // length, k // length
        return seen

    return mask


if __name__ == "__main__":
    main()

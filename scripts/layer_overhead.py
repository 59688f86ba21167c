#!/usr/bin/env python3
"""What Python costs in a layer's call: its attention beside the bare call of the compiled tier.

    python scripts/build_native.py && python scripts/layer_overhead.py

Nothing is computed: both only add an operation to MLX's graph. They take turns; the figure is the
difference of the quickest rounds, in microseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx

from natten_zoo.layers import NeighborhoodAttention2D
from natten_zoo.ops import native
from natten_zoo.ops.problem import attention_problem

CALLS, ROUNDS = 300, 40


def microseconds(call: Callable[[], Any]) -> float:
    """A call of one round."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / CALLS


def main() -> int:
    mx.set_default_device(mx.cpu)
    layer = NeighborhoodAttention2D(64, num_heads=2, kernel_size=7, rel_pos_bias=True)
    query, key, value = layer.project_qkv(mx.zeros((1, 8, 8, 64)))
    mx.eval(query, key, value, layer.parameters())
    hood, rpb = layer.neighborhood, layer.rpb
    problem = attention_problem("na2d", hood, query, key, value, layer.scale, rpb)
    extension, forward, call = (
        native._extension(),
        native._operation("forward"),
        native._call(problem),
    )
    bare = lambda: extension.apply(forward, call, [query, key, value], rpb, None)  # noqa: E731
    calls = {"layer": lambda: layer.attend(query, key, value), "bare": bare}
    rounds = [{name: microseconds(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    layers, bares = (min(each[name] for each in rounds) for name in calls)
    print(f"layer {layers:.2f} us, bare call {bares:.2f} us: {layers - bares:.2f} us of Python")
    return 0


if __name__ == "__main__":
    sys.exit(main())

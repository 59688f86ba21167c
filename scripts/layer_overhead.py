#!/usr/bin/env python3
"""What Python costs in a layer's call: its attention beside the bare call of the compiled tier.

    python scripts/build_native.py && python scripts/layer_overhead.py

Nothing is computed: all only add operations to MLX's graph. Pairs take turns; the figures are those
of the quickest rounds, in microseconds. The whole call is held against the same operations by hand.
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
Call = Callable[..., Any]


def microseconds(call: Call) -> float:
    """A call of one round."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / CALLS


def pairs() -> dict[str, tuple[Call, Call]]:
    """What a layer does, and the least that does the same."""
    layer = NeighborhoodAttention2D(64, num_heads=2, kernel_size=7, rel_pos_bias=True)
    x = mx.zeros((1, 8, 8, 64))
    qkv, parts = layer.project_packed(x), layer.project_qkv(x)
    mx.eval(x, qkv, parts, layer.parameters())
    rpb = layer.rpb
    problem = attention_problem("na2d", layer.neighborhood, *parts, layer.scale, rpb)
    apart, packed = (native.differentiable(op, problem) for op in ("forward", "forward_packed"))
    assert apart and packed

    def by_hand() -> mx.array:
        qkv = mx.unflatten(layer.qkv(x), -1, (-1, layer.head_dim))
        return layer.proj(packed((qkv,), rpb, None)[0].flatten(-2))

    return {
        "attend": (lambda: layer.attend(*parts), lambda: apart(parts, rpb, None)),
        "attend_packed": (lambda: layer.attend_packed(qkv), lambda: packed((qkv,), rpb, None)),
        "whole call": (lambda: layer(x), by_hand),
    }


def main() -> int:
    mx.set_default_device(mx.cpu)
    for name, calls in pairs().items():
        rounds = [[microseconds(call) for call in calls] for _ in range(ROUNDS)]
        layer, bare = map(min, zip(*rounds, strict=True))
        print(f"{name}: {layer:.2f} us, bare {bare:.2f} us: {layer - bare:.2f} us of Python")
    return 0


if __name__ == "__main__":
    sys.exit(main())

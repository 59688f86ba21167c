"""What a call costs on a GPU beside the kernels: the same launches from Python and from C++.

    python scripts/build_native.py && python scripts/benchmark_dispatch.py

`build` is the time to add the operation to MLX's graph, `one` a call with its evaluation,
`chain` a call of thirty in a row, evaluated at once. Medians of rounds in microseconds; the tiers
take turns. First of all both must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx

from natten_zoo import ops
from natten_zoo.cli._results import ABOUT, append
from natten_zoo.ops import gpu

COLUMNS = ("shape", "what", "tier", "same_bits", "build_us", "one_us", "chain_us", *ABOUT)

# name, spatial, heads, kernel size
SHAPES: list[tuple[str, tuple[int, ...], int, Any]] = [
    ("7x7 16h K7", (7, 7), 16, 7),
    ("14x14 8h K7", (14, 14), 8, 7),
    ("56x56 2h K7", (56, 56), 2, 7),
    ("1-D 1024 4h K7", (1024,), 4, 7),
    ("8x14x14 4h K3", (8, 14, 14), 4, 3),
]
CHAIN = 30
Function = Callable[[mx.array], Any]


def functions(rank: int, kernel_size: int, rpb: mx.array) -> dict[str, Function]:
    """Forward, and forward with the gradients of everything."""
    attend = getattr(ops, f"na{rank}d")

    def forward(x: mx.array) -> mx.array:
        return attend(x, x, x, kernel_size, rpb=rpb)

    def both(x: mx.array) -> list[mx.array]:
        run = lambda q, k, v, b: [attend(q, k, v, kernel_size, rpb=b)]  # noqa: E731
        outputs, gradients = mx.vjp(run, [x, x, x, rpb], [x])
        return [*outputs, *gradients]

    return {"forward": forward, "both": both}


def chain(function: Function, x: mx.array) -> None:
    """Each call waits for the one before."""
    for _ in range(CHAIN):
        result = function(x)
        x = result[0] if isinstance(result, list) else result
    mx.eval(x)


def times(function: Function, x: mx.array) -> dict[str, float]:
    """Microseconds of one round."""
    start = time.perf_counter()
    for _ in range(CHAIN):
        result = function(x)
    built = time.perf_counter()
    mx.eval(result)
    begun = time.perf_counter()
    mx.eval(function(x))
    one = time.perf_counter()
    chain(function, x)
    end = time.perf_counter()
    seconds = {"build": (built - start) / CHAIN, "one": one - begun, "chain": (end - one) / CHAIN}
    return {name: 1e6 * s for name, s in seconds.items()}


def same(function: Function, x: mx.array, tiers: list[str]) -> bool:
    """Whether all tiers give the same bits."""
    results = []
    for tier in tiers:
        with ops.use_backend(tier):
            result = function(x)
        results.append(result if isinstance(result, list) else [result])
    return all(bool(mx.array_equal(*pair)) for pair in zip(*results, strict=True))


def main() -> int:
    """Prints the table; the exit status tells whether the results were the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--csv", type=Path, help="append a line per tier to this table")
    args = parser.parse_args()
    tiers, rows, right = [gpu.NAME, "nanobind"], [], True
    for name, spatial, heads, kernel_size in SHAPES:
        x = mx.random.normal((1, *spatial, heads, 32)).astype(mx.float16)
        rpb = mx.random.normal((heads, *(2 * kernel_size - 1,) * len(spatial))).astype(mx.float16)
        for what, function in functions(len(spatial), kernel_size, rpb).items():
            equal = same(function, x, tiers)
            right &= equal
            rounds: dict[str, list[dict[str, float]]] = {tier: [] for tier in tiers}
            for _ in range(args.rounds):
                for tier in tiers:
                    with ops.use_backend(tier):
                        rounds[tier].append(times(function, x))
            row: dict[str, Any] = {"shape": name, "what": what, "same_bits": equal}
            for tier, measured in rounds.items():
                row[tier] = {k: statistics.median(m[k] for m in measured) for k in measured[0]}
            rows.append(row)
            for tier in tiers if args.csv else ():
                shown = {f"{k}_us": f"{v:.1f}" for k, v in row[tier].items()}
                append(
                    args.csv, COLUMNS, shape=name, what=what, tier=tier, same_bits=equal, **shown
                )
            figures = "   ".join(
                f"{tier} " + " ".join(f"{k} {v:6.1f}" for k, v in row[tier].items())
                for tier in tiers
            )
            print(f"{name:15} {what:8} {'same' if equal else 'DIFFERENT'}   {figures}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

"""Times neighborhood attention on every tier that runs here, beside a gather per query.

    python scripts/benchmark_ops.py --filter 2-D --json ops.json --plot ops.png

Each row is one shape: forward, forward+backward (gradients of query, key and value) and the peak
memory of the latter above its inputs, as MLX's allocator counts it. Contestants take turns, round
by round, and the median round counts, or, with --statistic min, the least disturbed one, where
other work shares the machine; in a turn the first call is not timed, those of the next 10
ms are. `gather` is the baseline: neighborhood attention as one would write it in MLX, each query
with a copy of its keys and values. `x` columns are the baseline's time over the contestant's.
The floor of a shape is its multiply-adds (only keys in the window) and the bytes of query, key,
value and output.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx
import numpy as np
from benchmark_contestants import (
    Case,
    Contestant,
    gather,
    mlx_contestant,
    natten_mlx,
    tier,
)
from keep_memory import keep_memory

from natten_zoo.cli._results import ABOUT, append
from natten_zoo.ops import backend, native

COLUMNS = (
    *("case", "contestant", "dtype", "batch", "forward_ms", "forward_ratio"),
    *("both_ms", "both_ratio", "peak_mb", "peak_share"),
    *ABOUT,
)
MLX = version("mlx")
TORCH_PEERS = ("torch dense mask", "torch flex", "natten 0.17.5")
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

CASES = [
    Case("2-D 56x56, 2 heads, K 7", (56, 56), 2),
    Case("2-D 28x28, 4 heads, K 7", (28, 28), 4),
    Case("2-D 14x14, 8 heads, K 7", (14, 14), 8),
    Case("2-D 7x7, 16 heads, K 7", (7, 7), 16),
    Case("2-D 32x32, 4 heads, K 7", (32, 32), 4),
    Case("2-D 64x64, 4 heads, K 7", (64, 64), 4),
    Case("2-D 64x64, 4 heads, K 13", (64, 64), 4, 13),
    Case("2-D 56x56, dilation 8", (56, 56), 2, dilation=8),
    Case("2-D 28x28, dilation 4", (28, 28), 4, dilation=4),
    Case("2-D 32x32, causal", (32, 32), 4, is_causal=True),
    Case("1-D 1024, 4 heads, K 7", (1024,), 4),
    Case("1-D 1024, K 63, causal", (1024,), 4, 63, is_causal=True),
    Case("1-D 1024, dilation 16", (1024,), 4, dilation=16),
    Case("3-D 16^3, 4 heads, K 3", (16, 16, 16), 4, 3),
    Case("3-D 8x28x28, 4 heads, K 3x7x7", (8, 28, 28), 4, (3, 7, 7)),
]


def contestants(case: Case, wanted: list[str], batch: int, dtype: str) -> list[Contestant]:
    """Everybody who can run a case, the baseline first."""
    shape = (batch, *case.spatial, case.heads, case.head_dim)
    arrays = [mx.random.normal(shape).astype(DTYPES[dtype]) for _ in range(4)]
    mx.eval(arrays)
    found = [mlx_contestant("gather", gather(case), arrays)]
    for name in backend.TIERS:
        if name in wanted and backend.why_not(name, case.problem(batch, DTYPES[dtype])) is None:
            found.append(mlx_contestant(name, tier(case, name), arrays))
    peers: dict[str, Callable[[], Contestant]] = {
        "natten_mlx": lambda: mlx_contestant("natten_mlx", natten_mlx(case), arrays),
        **{name: partial(torch_peer, name, case, batch, dtype) for name in TORCH_PEERS},
    }
    for name, make in peers.items():
        if name in wanted:
            try:
                found.append(make())
            except Exception as error:
                complain(f"{name}: {error}")
    return found


def torch_peer(name: str, case: Case, batch: int, dtype: str) -> Contestant:
    """One of `torch_contestants.py`, which needs torch."""
    from torch_contestants import torch_contestant

    return torch_contestant(name, case, batch, dtype)


@cache
def complain(text: str) -> None:
    """Says once why somebody does not take part."""
    print(f"  {text}", file=sys.stderr)


def measure(
    case: Case, wanted: list[str], batch: int, dtype: str, rounds: int, statistic: str = "median"
) -> list[dict]:
    """One row per contestant."""
    of_rounds = min if statistic == "min" else statistics.median
    ones = contestants(case, wanted, batch, dtype)
    for _ in range(rounds):
        for one in ones:
            one.run()
    rows: list[dict[str, Any]] = []
    for one in ones:
        row: dict[str, Any] = {"case": case.name, "contestant": one.name}
        row |= {"peak_bytes": one.peak_bytes, "remark": one.remark}
        row |= {f"{k}_ms": 1e3 * of_rounds(s) for k, s in one.seconds.items()}
        if one.name == "nanobind":
            operations = 2 * batch * case.fused_multiply_adds()
            peak = max(native.fma_peak() for _ in range(5))
            row["peak_share"] = operations / peak / row["forward_ms"] * 1e3
        rows.append(row)
        base = rows[0]
        row |= {f"{k}_ratio": base[f"{k}_ms"] / row[f"{k}_ms"] for k in one.seconds}
    return rows


def show(case: Case, rows: list[dict], batch: int, itemsize: int) -> None:
    """Prints the rows of one case under its floor."""
    one = batch * int(np.prod(case.spatial)) * case.heads * case.head_dim * itemsize
    size = "x".join(map(str, case.spatial))
    print(
        f"{case.name}: {size}, {case.heads} heads, kernel {case.hood.kernel_size}; forward floor "
        f"{batch * case.fused_multiply_adds() / 1e6:.1f} M multiply-adds, {4 * one / 1e6:.1f} MB"
    )
    for row in rows:
        peak = row["peak_bytes"]
        rest = "-" if peak is None else f"{peak / 1e6:9.1f} MB {peak / (3 * one):6.1f} x inputs"
        if "peak_share" in row:
            rest += f"  {row['peak_share']:.0%} of peak"
        if row["remark"]:
            rest += f"  {row['remark']}"
        times = [
            f"{row[f'{k}_ms']:10.2f} ms {row[f'{k}_ratio']:6.1f}x" if f"{k}_ms" in row else " " * 21
            for k in ("forward", "both")
        ]
        print(f"  {row['contestant']:17}{''.join(times)}  {rest}", flush=True)


def in_words(row: dict[str, Any]) -> dict[str, str]:
    """A row as a table shows it."""
    shown = {"case": row["case"], "contestant": row["contestant"]}
    for kind in ("forward", "both"):
        if f"{kind}_ms" in row:
            shown[f"{kind}_ms"] = f"{row[f'{kind}_ms']:.3g}"
            shown[f"{kind}_ratio"] = f"{row[f'{kind}_ratio']:.1f}"
    if row["peak_bytes"] is not None:
        shown["peak_mb"] = f"{row['peak_bytes'] / 1e6:.1f}"
    if "peak_share" in row:
        shown["peak_share"] = f"{100 * row['peak_share']:.0f} %"
    return shown


def plot(rows: list[dict], path: Path) -> None:
    """Bars of the speed-up over the baseline, forward+backward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if "both_ratio" in r]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    names = list(dict.fromkeys(r["contestant"] for r in rows))
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(cases) + 1.5))
    for i, name in enumerate(names):
        found = [(cases.index(r["case"]), r["both_ratio"]) for r in rows if r["contestant"] == name]
        places = [y + (i - len(names) / 2) * 0.8 / len(names) for y, _ in found]
        axes.barh(places, [ratio for _, ratio in found], 0.8 / len(names), label=name)
    axes.set(xscale="log", xlabel="times as fast as a gather per query, forward and backward")
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Runs the table."""
    everybody = [*backend.TIERS, "natten_mlx", *TORCH_PEERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--tiers", default=",".join(everybody), help="comma-separated contestants")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--statistic", choices=("median", "min"), default="median")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--csv", type=Path, help="append a line per contestant to this table")
    parser.add_argument("--plot", type=Path, help="draw the speed-ups to this file")
    args = parser.parse_args()
    wanted = args.tiers.split(",")
    if strangers := set(wanted) - set(everybody):
        parser.error(f"--tiers: there is no {', '.join(strangers)} among {', '.join(everybody)}")
    print(f"MLX {MLX} on {mx.default_device()}, {platform.platform()}, {args.dtype}")
    print(f"  {'':17}{'forward':>13} {'':6} {'forward+backward':>14} {'':5}  peak memory")
    rows = []
    for case in CASES:
        if args.filter in case.name:
            how = (args.batch, args.dtype, args.rounds, args.statistic)
            measured = measure(case, wanted, *how)
            show(case, measured, args.batch, DTYPES[args.dtype].size)
            rows += measured
            for row in measured if args.csv else ():
                how_measured = {"dtype": args.dtype, "batch": args.batch}
                append(args.csv, COLUMNS, **how_measured, **in_words(row))
    if args.json:
        about = {"mlx": MLX, "device": str(mx.default_device()), "dtype": args.dtype}
        about["statistic"] = args.statistic
        args.json.write_text(json.dumps({**about, "batch": args.batch, "rows": rows}, indent=1))
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    keep_memory()
    main()

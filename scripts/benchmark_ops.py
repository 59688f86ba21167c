"""Times neighborhood attention on every tier that runs here, beside a gather per query.

    python scripts/benchmark_ops.py --filter 2-D --json ops.json --plot ops.png

Each row is one shape: forward, forward+backward (gradients of query, key and value) and the peak
memory of the latter above its inputs. Contestants take turns, round by round, and the median round
counts. ``gather`` is the baseline: neighborhood attention as one would write it in MLX, each query
with a copy of its keys and values. ``x`` columns are the baseline's time over the contestant's.
The floor of a shape is its multiply-adds (only keys in the window) and the bytes of query, key,
value and output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx
import numpy as np

from natten_zoo import ops
from natten_zoo.ops import backend
from natten_zoo.ops.problem import Problem

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# glibc returns large blocks to the system after each use, and page faults then take as long as the
# arithmetic: all contestants keep their memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}


@dataclass(frozen=True)
class Case:
    """One shape of the table."""

    name: str
    spatial: tuple[int, ...]
    heads: int
    kernel_size: int | tuple[int, ...] = 7
    dilation: int = 1
    is_causal: bool = False
    head_dim: int = 32

    @property
    def hood(self) -> ops.Neighborhood:
        return ops.Neighborhood.of(
            len(self.spatial), self.kernel_size, dilation=self.dilation, is_causal=self.is_causal
        )

    def problem(self, batch: int, dtype: mx.Dtype) -> Problem:
        d = self.head_dim
        return Problem(self.hood, batch, self.spatial, self.heads, self.heads, d, d, d**-0.5, dtype)

    def fused_multiply_adds(self) -> int:
        """Of one sample's forward: a logit and its share of the output per query and key."""
        pairs = 1
        for axis, length in enumerate(self.spatial):
            pairs *= int(self.hood.windows(axis, length)[1].sum())
        return pairs * self.heads * 2 * self.head_dim


CASES = [
    Case("2-D NAT stage 1", (56, 56), 2),
    Case("2-D NAT stage 2", (28, 28), 4),
    Case("2-D NAT stage 3", (14, 14), 8),
    Case("2-D NAT stage 4", (7, 7), 16),
    Case("2-D 32x32", (32, 32), 4),
    Case("2-D 64x64", (64, 64), 4),
    Case("2-D 64x64 K13", (64, 64), 4, 13),
    Case("2-D dilated 8", (56, 56), 2, dilation=8),
    Case("2-D dilated 4", (28, 28), 4, dilation=4),
    Case("2-D causal", (32, 32), 4, is_causal=True),
    Case("1-D 1024", (1024,), 4),
    Case("1-D causal K63", (1024,), 4, 63, is_causal=True),
    Case("1-D dilated 16", (1024,), 4, dilation=16),
    Case("3-D 16x16x16 K3", (16, 16, 16), 4, 3),
    Case("3-D 8x28x28", (8, 28, 28), 4, (3, 7, 7)),
]

Attention = Callable[[Any, Any, Any], Any]


@dataclass
class Contestant:
    """``forward(q, k, v)`` and ``backward(q, k, v, d_out)``, both evaluated before they return."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    arrays: list[Any]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"forward": [], "both": []})
    peak_bytes: int | None = None

    def run(self) -> None:
        """One round: each function once."""
        for key, function in (("forward", self.forward), ("both", self.backward)):
            start = time.perf_counter()
            function(*self.arrays)
            self.seconds[key].append(time.perf_counter() - start)


def mlx_contestant(name: str, attention: Attention, arrays: list[mx.array]) -> Contestant:
    """A contestant of an MLX function; measures its peak memory, too."""

    def forward(*arrays: mx.array) -> None:
        mx.eval(attention(*arrays[:3]))

    def backward(*arrays: mx.array) -> None:
        mx.eval(mx.vjp(lambda *qkv: [attention(*qkv)], list(arrays[:3]), [arrays[3]]))

    one = Contestant(name, forward, backward, arrays)
    one.run()  # compiles kernels, fills caches
    one.seconds = {key: [] for key in one.seconds}
    mx.clear_cache()
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    backward(*arrays)
    one.peak_bytes = mx.get_peak_memory() - held
    return one


def gather(case: Case) -> Attention:
    """The baseline: copies the keys and values of each query."""
    index, seen = 0, True
    for axis, length in enumerate(case.spatial):
        first, count = case.hood.windows(axis, length)
        slots = np.arange(case.hood.kernel_size[axis])
        key = np.minimum(first[:, None] + slots * case.dilation, length - 1)
        inside = slots < count[:, None]
        shape = [1] * (2 * len(case.spatial))
        shape[axis], shape[axis + len(case.spatial)] = key.shape
        index = index * length + key.reshape(shape)
        seen = seen & inside.reshape(shape)
    volume = case.hood.volume
    places = mx.array(np.asarray(index).reshape(-1).astype(np.int32))
    masked = mx.array(np.where(seen, 0, -np.inf).reshape(-1, 1, 1, volume).astype(np.float32))

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        batch, *_, heads, dim = query.shape
        q, k, v = (x.flatten(1, -3) for x in (query, key, value))  # [B, N, H, D]
        k, v = (mx.take(x, places, axis=1) for x in (k, v))
        k, v = (x.reshape(batch, -1, volume, heads, dim).swapaxes(2, 3) for x in (k, v))
        logits = (q * dim**-0.5)[:, :, :, None] @ k.mT  # [B, N, H, 1, volume]
        if case.is_causal:
            logits = logits + masked.astype(logits.dtype)
        return (mx.softmax(logits, axis=-1, precise=True) @ v).reshape(query.shape)

    return attention


def tier(case: Case, name: str) -> Attention:
    """The operator of ``natten_zoo``, forced to one tier."""
    function = (ops.na1d, ops.na2d, ops.na3d)[len(case.spatial) - 1]

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        with ops.use_backend(name):
            return function(query, key, value, case.kernel_size, 1, case.dilation, case.is_causal)

    return attention


def natten_mlx(case: Case) -> Attention:
    """The peer package, where it imports."""
    import natten_mlx

    function = getattr(natten_mlx, f"na{len(case.spatial)}d")
    return lambda q, k, v: function(q, k, v, case.kernel_size, 1, case.dilation, case.is_causal)


def torch_contestant(case: Case, batch: int, dtype: str, flex: bool) -> Contestant:
    """PyTorch: dense attention with the neighborhood as a mask, or compiled flex_attention."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flex and device == "cpu":
        raise ImportError("flex_attention has no backward on a CPU")
    seen = np.ones((1, 1), bool)
    for axis, length in enumerate(case.spatial):
        seen = np.kron(seen, case.hood.mask(axis, length))
    mask = torch.from_numpy(seen).to(device)
    if flex:
        n = len(seen)
        block = create_block_mask(lambda b, h, q, k: mask[q, k], None, None, n, n, device=device)
        compiled = torch.compile(flex_attention)
        attention = lambda q, k, v: compiled(q, k, v, block_mask=block)  # noqa: E731
    else:
        dense = torch.nn.functional.scaled_dot_product_attention
        attention = lambda q, k, v: dense(q, k, v, attn_mask=mask)  # noqa: E731

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward(*arrays: Any) -> None:
        with torch.no_grad():
            attention(*arrays[:3])
        wait()

    def backward(*arrays: Any) -> None:
        torch.autograd.grad(attention(*arrays[:3]), arrays[:3], arrays[3])
        wait()

    shape = (batch, case.heads, len(seen), case.head_dim)
    arrays = [torch.randn(shape, device=device, dtype=getattr(torch, dtype)) for _ in range(4)]
    for x in arrays[:3]:
        x.requires_grad_()
    one = Contestant("torch flex" if flex else "torch dense mask", forward, backward, arrays)
    one.run()
    one.seconds = {key: [] for key in one.seconds}
    return one


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
        "torch dense mask": lambda: torch_contestant(case, batch, dtype, flex=False),
        "torch flex": lambda: torch_contestant(case, batch, dtype, flex=True),
    }
    for name, make in peers.items():
        if name in wanted:
            try:
                found.append(make())
            except Exception as error:
                print(f"  {name}: {error}", file=sys.stderr)
    return found


def measure(case: Case, wanted: list[str], batch: int, dtype: str, rounds: int) -> list[dict]:
    """One row per contestant."""
    ones = contestants(case, wanted, batch, dtype)
    for _ in range(rounds):
        for one in ones:
            one.run()
    rows: list[dict[str, Any]] = []
    for one in ones:
        row = {"case": case.name, "contestant": one.name, "peak_bytes": one.peak_bytes}
        row |= {f"{k}_ms": 1e3 * statistics.median(s) for k, s in one.seconds.items()}
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
        memory = "-" if peak is None else f"{peak / 1e6:9.1f} MB {peak / (3 * one):6.1f} x inputs"
        print(
            f"  {row['contestant']:17}{row['forward_ms']:10.2f} ms {row['forward_ratio']:6.1f}x"
            f"{row['both_ms']:10.2f} ms {row['both_ratio']:6.1f}x  {memory}",
            flush=True,
        )


def plot(rows: list[dict], path: Path) -> None:
    """Bars of the speed-up over the baseline, forward+backward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the table."""
    everybody = [*backend.TIERS, "natten_mlx", "torch dense mask", "torch flex"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--tiers", default=",".join(everybody), help="comma-separated contestants")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the speed-ups to this file")
    args = parser.parse_args()
    wanted = args.tiers.split(",")
    print(f"MLX {mx.__version__} on {mx.default_device()}, {platform.platform()}, {args.dtype}")
    print(f"  {'':17}{'forward':>13} {'':6} {'forward+backward':>14} {'':5}  peak memory")
    rows = []
    for case in CASES:
        if args.filter in case.name:
            measured = measure(case, wanted, args.batch, args.dtype, args.rounds)
            show(case, measured, args.batch, DTYPES[args.dtype].size)
            rows += measured
    if args.json:
        about = {"mlx": mx.__version__, "device": str(mx.default_device()), "dtype": args.dtype}
        args.json.write_text(json.dumps({**about, "batch": args.batch, "rows": rows}, indent=1))
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    if sys.platform == "linux" and not MALLOC.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    main()

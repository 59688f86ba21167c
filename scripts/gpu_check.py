"""Proves the GPU tier on a real GPU and times it: one command, one report.

    python scripts/gpu_check.py --out report.json           # everything
    python scripts/gpu_check.py --only check --count 500     # numbers alone
    python scripts/gpu_check.py --only bench --cases "K13" --dtypes float16
    python scripts/gpu_check.py --only bench --shapes large --contestants ours --dtypes float16

`check` holds random problems against a float64 reference, each twice: the results must be the
same to the last bit, and so must those of views of the arrays, those of problems without an LSE,
and the gradients that are written into one. `memory` runs a few of them under compute-sanitizer,
where it is installed.
`large` computes arrays of more than 2^31 elements and holds their ends against short ones; it
needs about 50 GB.
`bench` times forward, and forward with backward, of ours, MLX's dense attention with the
neighborhood as a mask, a gather per query (all under mx.compile), and torch's compiled
flex_attention, where torch is installed: medians of rounds after a warm-up, inputs rotating, beside
the two floors of each shape (bytes and operations).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
sys.modules["tests"] = ModuleType("tests")  # not one that an installed package left behind
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from gpu_proof import check, large, memory  # noqa: E402

# Peak rates of one H100 (SXM): dense tensor cores for 16 bits, CUDA cores for float32; memory.
FLOPS = {"float16": 989e12, "bfloat16": 989e12, "float32": 67e12}
BYTES_PER_SECOND = 3.35e12
SETS = 4  # of inputs that take turns, so that no cache holds them
GATHER_LIMIT = 16e9  # bytes of keys and values beyond which the gather is not tried


class Shape(NamedTuple):
    """A row of the table."""

    name: str
    spatial: tuple[int, ...]
    heads: int
    kernel: Any
    batch: int
    head_dim: int = 32
    window_stride: Any = 1

    @property
    def volume(self) -> int:
        """Keys that a query sees."""
        kernel = self.kernel
        return math.prod(kernel) if isinstance(kernel, tuple) else kernel ** len(self.spatial)

    @property
    def sets(self) -> int:
        """Of inputs that take turns: one where it alone is more than a cache."""
        elements = self.batch * self.heads * math.prod(self.spatial) * self.head_dim
        return SETS if elements < 1e8 else 1


# Levels of NAT and their like, and the large windows and wide heads that others publish.
NAT = [
    Shape("56x56 2h K7 b32", (56, 56), 2, 7, 32),
    Shape("28x28 4h K7 b32", (28, 28), 4, 7, 32),
    Shape("14x14 8h K7 b32", (14, 14), 8, 7, 32),
    Shape("7x7 16h K7 b32", (7, 7), 16, 7, 32),
    Shape("64x64 4h K7 b1", (64, 64), 4, 7, 1),
    Shape("64x64 4h K13 b1", (64, 64), 4, 13, 1),
    Shape("56x56 4h K13 b32", (56, 56), 4, 13, 32),
    Shape("16^3 4h K3 b4", (16, 16, 16), 4, 3, 4),
    Shape("8x28x28 4h K3,7,7 b4", (8, 28, 28), 4, (3, 7, 7), 4),
]
LARGE = [
    Shape("32768 1h K2048 D128", (32768,), 1, 2048, 1, 128),
    Shape("32768 1h K2048 D128 stride 256", (32768,), 1, 2048, 1, 128, 256),
    Shape("256^2 24h K80 D128", (256, 256), 24, 80, 1, 128),
    Shape("256^2 24h K80 D128 stride 16", (256, 256), 24, 80, 1, 128, 16),
    Shape("30x48x80 24h K18,24,24 D128", (30, 48, 80), 24, (18, 24, 24), 1, 128),
    Shape(
        "30x48x80 24h K18,24,24 D128 stride 16,8,8",
        (30, 48, 80), 24, (18, 24, 24), 1, 128, (16, 8, 8),
    ),
    Shape("8x64x64 8h K3,7,7 D64", (8, 64, 64), 8, (3, 7, 7), 1, 64),
    Shape("16x32x32 8h K11 D64", (16, 32, 32), 8, 11, 1, 64),
    Shape("64x64 8h K13 D128 b8", (64, 64), 8, 13, 8, 128),
    Shape("64x64 8h K13 D64 b8", (64, 64), 8, 13, 8, 64),
]  # fmt: skip
SHAPES = {"nat": NAT, "large": LARGE}
Steps = dict[str, Callable[[int], Any]]  # "forward" and "both": run on input set i


def main() -> int:
    """Runs the parts asked for; the exit status tells whether all numbers were right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("check", "memory", "large", "bench"))
    parser.add_argument("--count", type=int, default=300, help="random problems to check")
    parser.add_argument("--families", type=int, nargs="*", help="which of them, by number: all")
    parser.add_argument("--shapes", choices=SHAPES, default="nat", help="which of them to time")
    parser.add_argument("--cases", default="", help="part of the names of the shapes to time")
    parser.add_argument("--dtypes", nargs="*", default=["float16", "bfloat16", "float32"])
    parser.add_argument("--contestants", nargs="*", default=["ours", "dense", "gather", "flex"])
    parser.add_argument("--flex-seconds", type=int, default=300, help="time that flex is given")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args()
    report: dict[str, Any] = {"device": device(), "bench": []}
    print(report["device"], flush=True)
    if args.only in (None, "check"):
        report["check"] = check(args.count, args.families)
    if args.only in (None, "memory"):
        report["memory"] = memory(args.families)
    if args.only in (None, "large"):
        report["large"] = large()
    for one in bench(args) if args.only in (None, "bench") else ():
        report["bench"].append(one)
        print(line(one), flush=True)
        save(report, args.out)
    save(report, args.out)
    parts = (report.get(part, {}).get("wrong") for part in ("check", "memory", "large"))
    return any(parts)


def save(report: dict[str, Any], path: Path | None) -> None:
    """Writes what there is so far: a run that is cut off leaves its rows."""
    if path:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(report, indent=1))
        part.replace(path)


def device() -> str:
    import mlx.core as mx

    from natten_zoo.ops import gpu
    from natten_zoo.ops.gpu.device import platform

    info = getattr(mx, "device_info", lambda: {})()
    if platform() is None:
        raise SystemExit("This MLX has neither a Metal nor a CUDA back-end.")
    return f"{gpu.NAME}, MLX {mx.__version__}, {info}"


def bench(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per contestant, shape and dtype: ours first, flex last."""
    builders = {"ours": ours, "dense": dense, "gather": gathered}
    for name, build in builders.items():
        for shape in SHAPES[args.shapes] if name in args.contestants else ():
            for dtype in args.dtypes if args.cases in shape.name else ():
                yield row(shape, dtype, name, build)
    if "flex" in args.contestants:
        yield from flex(args)


def flex(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Torch's flex_attention, in a process of its own that is given `--flex-seconds`."""
    import mlx.core as mx

    mx.clear_cache()  # MLX keeps what it had: torch needs memory of the same GPU
    script = str(ROOT / "scripts" / "flex_times.py")
    command = [sys.executable, script, "--shapes", args.shapes]
    command += ["--cases", args.cases, "--dtypes", *args.dtypes]
    limit = ["timeout", str(args.flex_seconds)] if shutil.which("timeout") else []
    with subprocess.Popen([*limit, *command], stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            one = json.loads(text)
            shape = next(s for s in SHAPES[args.shapes] if s.name == one["shape"])
            yield {**one, **floors(shape, one["dtype"])}
    if process.returncode:
        print(f"flex_times.py ended with status {process.returncode} (124: out of time)")


def row(shape: Shape, dtype: str, name: str, build: Callable[..., Steps]) -> dict[str, Any]:
    one: dict[str, Any] = {"shape": shape.name, "dtype": dtype, "contestant": name}
    one.update(floors(shape, dtype))
    try:
        for step, function in build(shape, dtype).items():
            one[step] = median_ms(function)
    except (RuntimeError, ValueError) as error:  # such as too little memory
        one["error"] = str(error).splitlines()[0][:200]
    return one


def median_ms(function: Callable[[int], Any]) -> float:
    """Milliseconds of a call: the median of rounds of about 20 ms."""
    import mlx.core as mx

    def round_of(calls: int) -> float:
        start = time.perf_counter()
        mx.eval([function(i % SETS) for i in range(calls)])
        mx.synchronize()
        return (time.perf_counter() - start) * 1e3 / calls

    round_of(2)
    calls = max(1, min(50, int(20 / max(round_of(2), 1e-3))))
    return statistics.median(round_of(calls) for _ in range(7))


def line(one: dict[str, Any]) -> str:
    times = [
        f"{step} {one[step]:8.3f} ms (floors {one[step + '_floors'][0]:.3f}, "
        f"{one[step + '_floors'][1]:.3f})"
        for step in ("forward", "both")
        if step in one
    ]
    who = f"{one['shape']:42}{one['dtype']:10}{one['contestant']:8}"
    return who + ("  ".join(times) or f"not run: {one.get('error')}")


def floors(shape: Shape, dtype: str) -> dict[str, tuple[float, float]]:
    """Milliseconds that bytes, and operations, take at least."""
    tokens, dim = shape.batch * shape.heads * math.prod(shape.spatial), shape.head_dim
    size = 4 if dtype == "float32" else 2
    passes = {"forward": (4, 1.0), "both": (12, 3.5)}  # arrays moved, multiples of the forward
    return {
        f"{step}_floors": (
            1e3 * tokens * (arrays * dim * size + 4) / BYTES_PER_SECOND,
            1e3 * tokens * shape.volume * 4 * dim * times / FLOPS[dtype],
        )
        for step, (arrays, times) in passes.items()
    }


def inputs(shape: Shape, dtype: str) -> list[list[Any]]:
    import mlx.core as mx

    mx.random.seed(0)
    size, kind = (shape.batch, *shape.spatial, shape.heads, shape.head_dim), getattr(mx, dtype)
    sets = [[mx.random.normal(size).astype(kind) for _ in "qkvg"] for _ in range(shape.sets)]
    mx.eval(sets)
    return sets


def steps(attention: Callable[..., Any], sets: list[list[Any]]) -> Steps:
    import mlx.core as mx

    @mx.compile
    def both(*arrays: Any) -> Any:
        *qkv, gradient = arrays
        return mx.vjp(lambda *x: [attention(*x)], qkv, [gradient])[1]

    forward = mx.compile(attention)
    return {
        "forward": lambda i: forward(*sets[i % len(sets)][:3]),
        "both": lambda i: both(*sets[i % len(sets)]),
    }


def ours(shape: Shape, dtype: str) -> Steps:
    from natten_zoo import ops
    from natten_zoo.ops import gpu

    hood = ops.Neighborhood.of(len(shape.spatial), shape.kernel, window_stride=shape.window_stride)
    ops.set_backend(gpu.NAME)
    return steps(lambda q, k, v: ops.attend(hood, q, k, v, return_lse=False), inputs(shape, dtype))


def dense(shape: Shape, dtype: str) -> Steps:
    import mlx.core as mx

    mask, scale = mx.array(case_of(shape).mask()), shape.head_dim**-0.5

    def attention(*qkv: Any) -> Any:
        q, k, v = (x.flatten(1, -3).swapaxes(1, 2) for x in qkv)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return out.swapaxes(1, 2).reshape(qkv[0].shape)

    return steps(attention, inputs(shape, dtype))


def gathered(shape: Shape, dtype: str) -> Steps:
    from benchmark_ops import gather

    case = case_of(shape)
    size = 4 if dtype == "float32" else 2
    rows = shape.batch * shape.heads * math.prod(shape.spatial)
    moved = rows * case.hood.volume * 2 * shape.head_dim * size
    if moved > GATHER_LIMIT:
        raise ValueError(f"would gather {moved / 1e9:.0f} GB")
    return steps(gather(case), inputs(shape, dtype))


def case_of(shape: Shape) -> Any:
    """A shape as benchmark_ops.py has it."""
    from benchmark_ops import Case

    if shape.window_stride != 1:
        raise ValueError("is not asked for a window_stride")
    return Case(shape.name, shape.spatial, shape.heads, shape.kernel, head_dim=shape.head_dim)


if __name__ == "__main__":
    sys.exit(main())

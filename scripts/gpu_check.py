"""Proves the GPU tier on a real GPU and times it: one command, one report.

    python scripts/gpu_check.py --out report.json           # everything
    python scripts/gpu_check.py --only check --count 500     # numbers alone
    python scripts/gpu_check.py --only bench --cases "K13" --dtypes float16

``check`` holds random problems against a float64 reference, each twice: the results must be the
same to the last bit. ``memory`` runs a few of them under compute-sanitizer, where it is installed.
``large`` computes arrays of more than 2^31 elements and holds their ends against short ones; it
needs about 50 GB.
``bench`` times forward, and forward with backward, of ours, MLX's dense attention with the
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
from typing import Any

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

# name, spatial, heads, kernel size, batch; head_dim 32
SHAPES: list[tuple[str, tuple[int, ...], int, Any, int]] = [
    ("56x56 2h K7 b32", (56, 56), 2, 7, 32),
    ("28x28 4h K7 b32", (28, 28), 4, 7, 32),
    ("14x14 8h K7 b32", (14, 14), 8, 7, 32),
    ("7x7 16h K7 b32", (7, 7), 16, 7, 32),
    ("64x64 4h K7 b1", (64, 64), 4, 7, 1),
    ("64x64 4h K13 b1", (64, 64), 4, 13, 1),
    ("56x56 4h K13 b32", (56, 56), 4, 13, 32),
    ("16^3 4h K3 b4", (16, 16, 16), 4, 3, 4),
    ("8x28x28 4h K3,7,7 b4", (8, 28, 28), 4, (3, 7, 7), 4),
]
Steps = dict[str, Callable[[int], Any]]  # "forward" and "both": run on input set i


def main() -> int:
    """Runs the parts asked for; the exit status tells whether all numbers were right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("check", "memory", "large", "bench"))
    parser.add_argument("--count", type=int, default=300, help="random problems to check")
    parser.add_argument("--families", type=int, nargs="*", help="which of them, by number: all")
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
        report["memory"] = memory()
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
        for shape in SHAPES if name in args.contestants else ():
            for dtype in args.dtypes if args.cases in shape[0] else ():
                yield row(shape, dtype, name, build)
    if "flex" in args.contestants:
        yield from flex(args)


def flex(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Torch's flex_attention, in a process of its own that is given ``--flex-seconds``."""
    import mlx.core as mx

    mx.clear_cache()  # MLX keeps what it had: torch needs memory of the same GPU
    script = str(ROOT / "scripts" / "flex_times.py")
    command = [sys.executable, script, "--cases", args.cases, "--dtypes", *args.dtypes]
    limit = ["timeout", str(args.flex_seconds)] if shutil.which("timeout") else []
    with subprocess.Popen([*limit, *command], stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            one = json.loads(text)
            shape = next(s for s in SHAPES if s[0] == one["shape"])
            yield {**one, **floors(shape, one["dtype"])}
    if process.returncode:
        print(f"flex_times.py ended with status {process.returncode} (124: out of time)")


def row(shape: Any, dtype: str, name: str, build: Callable[..., Steps]) -> dict[str, Any]:
    one: dict[str, Any] = {"shape": shape[0], "dtype": dtype, "contestant": name}
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
    who = f"{one['shape']:22}{one['dtype']:10}{one['contestant']:8}"
    return who + ("  ".join(times) or f"not run: {one.get('error')}")


def floors(shape: Any, dtype: str) -> dict[str, tuple[float, float]]:
    """Milliseconds that bytes, and operations, take at least."""
    _, spatial, heads, kernel, batch = shape
    tokens = batch * heads * math.prod(spatial)
    volume = math.prod(kernel) if isinstance(kernel, tuple) else kernel ** len(spatial)
    size = 4 if dtype == "float32" else 2
    passes = {"forward": (4, 1.0), "both": (12, 3.5)}  # arrays moved, multiples of the forward
    return {
        f"{step}_floors": (
            1e3 * tokens * (arrays * 32 * size + 4) / BYTES_PER_SECOND,
            1e3 * tokens * volume * 4 * 32 * times / FLOPS[dtype],
        )
        for step, (arrays, times) in passes.items()
    }


def inputs(shape: Any, dtype: str) -> list[list[Any]]:
    import mlx.core as mx

    _, spatial, heads, _, batch = shape
    mx.random.seed(0)
    sets = [
        [mx.random.normal((batch, *spatial, heads, 32)).astype(getattr(mx, dtype)) for _ in "qkvg"]
        for _ in range(SETS)
    ]
    mx.eval(sets)
    return sets


def steps(attention: Callable[..., Any], sets: list[list[Any]]) -> Steps:
    import mlx.core as mx

    @mx.compile
    def both(*arrays: Any) -> Any:
        *qkv, gradient = arrays
        return mx.vjp(lambda *x: [attention(*x)], qkv, [gradient])[1]

    forward = mx.compile(attention)
    return {"forward": lambda i: forward(*sets[i][:3]), "both": lambda i: both(*sets[i])}


def ours(shape: Any, dtype: str) -> Steps:
    from natten_zoo import ops
    from natten_zoo.ops import gpu

    _, spatial, _, kernel, _ = shape
    hood = ops.Neighborhood.of(len(spatial), kernel)
    ops.set_backend(gpu.NAME)
    return steps(lambda q, k, v: ops.attend(hood, q, k, v)[0], inputs(shape, dtype))


def dense(shape: Any, dtype: str) -> Steps:
    import mlx.core as mx

    mask = mx.array(case_of(shape).mask())

    def attention(*qkv: Any) -> Any:
        q, k, v = (x.flatten(1, -3).swapaxes(1, 2) for x in qkv)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=32**-0.5, mask=mask)
        return out.swapaxes(1, 2).reshape(qkv[0].shape)

    return steps(attention, inputs(shape, dtype))


def gathered(shape: Any, dtype: str) -> Steps:
    from benchmark_ops import gather

    _, spatial, heads, _, batch = shape
    case = case_of(shape)
    size = 4 if dtype == "float32" else 2
    moved = batch * heads * math.prod(spatial) * case.hood.volume * 2 * 32 * size
    if moved > GATHER_LIMIT:
        raise ValueError(f"would gather {moved / 1e9:.0f} GB")
    return steps(gather(case), inputs(shape, dtype))


def case_of(shape: Any) -> Any:
    """A shape as benchmark_ops.py has it."""
    from benchmark_ops import Case

    return Case(*shape[:4])


if __name__ == "__main__":
    sys.exit(main())

"""Check this machine: which tiers run, whether they are right, and how fast.

Every operator tier that runs here is held against the pure tier on a sample of problems, forward
and gradients, and timed beside it. The report is made to be pasted into an issue; it holds the
names of the device and of the versions, and nothing else of the machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..metal import MATRIX, Core
from ..version import __version__
from ._arguments import positive
from ._text import table

# What a result may be off by, relative to the largest reference value, or absolute where that is
# below 1.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}

# Rank, spatial size, heads, head_dim, whether there is a bias, parameters of the operator.
SAMPLES: dict[str, tuple[tuple[int, ...], int, int, bool, dict[str, Any]]] = {
    "1-D, K 7": ((200,), 4, 32, False, {"kernel_size": 7}),
    "1-D, K 31, dilated, causal": (
        (200,), 2, 64, False, {"kernel_size": 31, "dilation": 3, "is_causal": True},
    ),
    "2-D, K 7, bias (NAT)": ((28, 28), 4, 32, True, {"kernel_size": 7}),
    "2-D, K 7, dilated, bias (DiNAT)": ((28, 28), 4, 32, True, {"kernel_size": 7, "dilation": 4}),
    "2-D, K 5, head_dim 12, bias": ((20, 31), 2, 12, True, {"kernel_size": 5}),
    "2-D, K 13": ((20, 20), 2, 64, False, {"kernel_size": 13}),
    "2-D, K 4x6, strides": (
        (17, 19), 2, 16, False, {"kernel_size": (4, 6), "stride": (2, 3), "window_stride": (1, 2)},
    ),
    "3-D, K 3": ((8, 9, 10), 2, 32, False, {"kernel_size": 3}),
    "3-D, K 3x5x5, bias": ((4, 10, 11), 2, 24, True, {"kernel_size": (3, 5, 5)}),
}  # fmt: skip

BATCH = 32  # so large that the GPU tier takes the kernels that it has for much work
TIMED = ("1-D, K 7", "2-D, K 7, bias (NAT)", "2-D, K 13", "3-D, K 3")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--quick", action="store_true", help="float32 only, and no timing")
    parser.add_argument(
        "--rounds", type=positive, default=10, help="rounds per timing (default 10)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 if a tier is wrong."""
    from ..ops import backend, pure

    print("\n".join(f"{name:10} {value}" for name, value in machine().items()))
    print()
    tiers = []
    for name, answers in backend.get_support_matrix().items():
        usable = set(answers.values()) == {"yes"}
        print(f"{name:10} {'runs' if usable else next(a for a in answers.values() if a != 'yes')}")
        if usable and name != pure.NAME:
            tiers.append(name)
    if not tiers:
        print("\nOnly the pure tier runs here: nothing to hold it against.")
    wrong = sum(examine(name, args) for name in tiers)
    print(
        "\nSomething is wrong: please open an issue with this report." if wrong else "\nAll well."
    )
    return int(wrong > 0)


def machine() -> dict[str, Any]:
    """Versions and devices."""
    import mlx.core as mx

    info: dict[str, Any] = getattr(mx, "device_info", dict)()
    return {
        "natten_zoo": __version__,
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": info.get("device_name") or info.get("architecture") or str(mx.default_device()),
        "blas": blas_in_words(loaded_libraries()),
    }


def loaded_libraries() -> list[str]:
    """Files that this process has mapped; on Linux only."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return sorted({line.split(maxsplit=5)[5] for line in lines if line.count("/")})


def blas_in_words(libraries: Sequence[str]) -> str:
    """Which library multiplies matrices on the CPU; the first that is loaded before MLX's own wins.

    Examples:
        >>> blas_in_words(["/usr/lib/libopenblasp-r0.3.21.so", "/x/mlx_cpu.libs/libblas-1.so.3"])
        'OpenBLAS (libopenblasp-r0.3.21.so)'
    """
    if platform.system() == "Darwin":
        return "Accelerate"
    # NumPy brings an OpenBLAS of its own, which MLX does not see.
    names = [Path(path).name for path in libraries if "numpy" not in path and "scipy" not in path]
    for kind, pattern in (("OpenBLAS", "openblas"), ("MKL", "mkl_rt"), ("BLIS", "libblis")):
        if found := [name for name in names if pattern in name]:
            return f"{kind} ({found[0]})"
    if found := [name for name in names if name.startswith("libblas")]:
        return (
            f"the reference BLAS ({found[0]}); with OpenBLAS models are two to three times as fast "
            "on the CPU: apt install libopenblas0-pthread, LD_PRELOAD its libopenblas.so.0"
        )
    return "unknown"


def examine(tier: str, args: argparse.Namespace) -> int:
    """Prints a tier's errors and times; returns how many results are wrong."""
    rows, wrong = [], 0
    for dtype in ["float32"] if args.quick else list(TOLERANCE):
        for name in SAMPLES:
            verdict = compare(tier, name, dtype)
            wrong += verdict.startswith("WRONG")
            rows.append([name, dtype, verdict])
    print(f"\n{tier} against pure: largest error of the output and of the gradients")
    print(table(["problem", "dtype", tier], rows, "<<<"))
    if not args.quick:
        print(f"\nmilliseconds, forward and forward with gradients (median of {args.rounds})")
        columns = ways(tier)
        timed = [times(columns, name, args.rounds) for name in TIMED]
        print(table([f"batch {BATCH}, float16", *columns], timed, "<" + ">" * len(columns)))
    return wrong


def ways(tier: str) -> dict[str, tuple[str, Core | None]]:
    """Columns of the times: a tier, and on Metal the core that multiplies."""
    columns: dict[str, tuple[str, Core | None]] = {tier: (tier, None), "pure": ("pure", None)}
    if tier == "fast_metal":
        columns["matrices alone"] = (tier, MATRIX)
    return columns


def compare(tier: str, name: str, dtype: str) -> str:
    """``ok`` or ``WRONG`` with the error, or why the tier did not run the problem."""
    from .. import ops

    function, arrays = problem(name, dtype)
    try:
        with ops.use_backend(tier):
            got = results(function, arrays)
    except RuntimeError as failure:
        return f"WRONG: {' '.join(str(failure).split())[:200]}"
    _, exact = problem(name, dtype, as_float32=True)
    with ops.use_backend("pure"):
        wanted = results(function, exact)
    error = max(distance(x, y) for x, y in zip(got, wanted, strict=True))
    return f"{'ok' if error <= TOLERANCE[dtype] else 'WRONG'} {error:.1e}"


def times(columns: dict[str, tuple[str, Core | None]], name: str, rounds: int) -> list[str]:
    """A row of the table of times."""
    import mlx.core as mx

    from .. import ops
    from ..ops.gpu.device import use_core

    row = [name]
    for tier, core in columns.values():
        function, arrays = problem(name, "float16", batch=BATCH)
        with ops.use_backend(tier), use_core(core):
            forward = median_ms(lambda *a: mx.eval(function(*a)), arrays, rounds)  # noqa: B023
            both = median_ms(lambda *a: results(function, a), arrays, rounds)  # noqa: B023
        row.append(f"{forward:.2f} / {both:.2f}")
    return row


def problem(
    name: str, dtype: str, batch: int = 1, as_float32: bool = False
) -> tuple[Callable[..., Any], list[Any]]:
    """An operator and the arrays to call it with, always the same ones."""
    import mlx.core as mx

    from .. import ops

    spatial, heads, head_dim, has_rpb, parameters = SAMPLES[name]
    hood = ops.Neighborhood.of(len(spatial), **parameters)
    keys = mx.random.split(mx.random.key(0), 4)
    shape = (batch, *spatial, heads, head_dim)
    arrays = [mx.random.normal(shape, key=k).astype(getattr(mx, dtype)) for k in keys[:3]]
    if has_rpb:
        rpb = mx.random.normal((heads, *hood.bias_shape), key=keys[3])
        arrays.append(rpb.astype(getattr(mx, dtype)))
    if as_float32:
        arrays = [a.astype(mx.float32) for a in arrays]
    mx.eval(arrays)

    def function(query: Any, key: Any, value: Any, *rpb: Any) -> Any:
        return ops.attend(hood, query, key, value, rpb=rpb[0] if rpb else None)[0]

    return function, arrays


def results(function: Callable[..., Any], arrays: Sequence[Any]) -> list[Any]:
    """The output, and the gradients of the sum of its cosines."""
    import mlx.core as mx

    def loss(*arrays: Any) -> tuple[Any, Any]:
        out = function(*arrays)
        return mx.cos(out.astype(mx.float32)).sum(), out

    (_, out), grads = mx.value_and_grad(loss, argnums=list(range(len(arrays))))(*arrays)
    mx.eval(out, grads)
    return [out, *grads]


def distance(got: Any, wanted: Any) -> float:
    """Largest difference, over the largest value if that exceeds 1; infinite if not finite."""
    import mlx.core as mx

    got, wanted = got.astype(mx.float32), wanted.astype(mx.float32)
    error = mx.abs(got - wanted).max() / mx.maximum(mx.abs(wanted).max(), 1.0)
    return float(error) if bool(mx.isfinite(got).all()) else float("inf")


def median_ms(function: Callable[..., Any], arrays: list[Any], rounds: int) -> float:
    """Milliseconds of a call: the median after two to warm up."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        function(*arrays)
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken[2:])

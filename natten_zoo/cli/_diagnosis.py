"""What `natten-zoo doctor` measures: each tier against a reference on the CPU, and times."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from .. import ops
from ..metal import MATRIX, Core
from ..ops import Neighborhood, backend, pure
from ..ops.gpu.device import use_core
from ..ops.problem import Problem
from ..version import __version__

# What a result may be off by, relative to the largest reference value, or absolute where that is
# below 1.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
MODEL = "nat_pico_fashion"
# Of its largest logit: on GPUs with TF32 its linear layers have ten bits of mantissa.
MODEL_TOLERANCE = 2e-2


class Sample(NamedTuple):
    """A problem: sizes, whether it has a bias, and the parameters of its neighborhood."""

    spatial: tuple[int, ...]
    heads: int
    head_dim: int
    has_rpb: bool
    parameters: dict[str, Any]

    @property
    def hood(self) -> Neighborhood:
        """Who sees whom."""
        return Neighborhood.of(len(self.spatial), **self.parameters)

    def problem(self, dtype: str, batch: int) -> Problem:
        """What is computed, for models of it."""
        d, h = self.head_dim, self.heads
        of = getattr(mx, dtype)
        return Problem(self.hood, batch, self.spatial, h, h, d, d, d**-0.5, of, self.has_rpb)


SAMPLES = {
    "1-D, K 7": Sample((200,), 4, 32, False, {"kernel_size": 7}),
    "1-D, K 31, dilated, causal": Sample(
        (200,), 2, 64, False, {"kernel_size": 31, "dilation": 3, "is_causal": True}
    ),
    "2-D, K 7, bias (NAT)": Sample((28, 28), 4, 32, True, {"kernel_size": 7}),
    "2-D, K 7, dilated, bias (DiNAT)": Sample(
        (28, 28), 4, 32, True, {"kernel_size": 7, "dilation": 4}
    ),
    "2-D, K 5, head_dim 12, bias": Sample((20, 31), 2, 12, True, {"kernel_size": 5}),
    "2-D, K 13": Sample((20, 20), 2, 64, False, {"kernel_size": 13}),
    "2-D, K 4x6, strides": Sample(
        (17, 19), 2, 16, False, {"kernel_size": (4, 6), "stride": (2, 3), "window_stride": (1, 2)}
    ),
    "3-D, K 3": Sample((8, 9, 10), 2, 32, False, {"kernel_size": 3}),
    "3-D, K 3x5x5, bias": Sample((4, 10, 11), 2, 24, True, {"kernel_size": (3, 5, 5)}),
}

# On a GPU so large that its tier takes the kernels that it has for much work.
BATCH = {"fast_metal": 32, "cuda": 32, "nanobind": 1}
TIMED = ("1-D, K 7", "2-D, K 7, bias (NAT)", "2-D, K 13", "3-D, K 3")

# Small problems of one image in float32, and where published, milliseconds of natten-mlx 0.3.3 on
# an M4 Max, forward and backward (its README).
PUBLISHED: dict[str, tuple[Sample, str]] = {
    "1-D 256, K 7": (Sample((256,), 4, 32, False, {"kernel_size": 7}), ""),
    "1-D 1024, K 7": (Sample((1024,), 4, 32, False, {"kernel_size": 7}), "0.27, 0.26"),
    "2-D 32x32, K 7": (Sample((32, 32), 4, 32, False, {"kernel_size": 7}), "0.65, 1.02"),
    "2-D 64x64, K 7": (Sample((64, 64), 4, 32, False, {"kernel_size": 7}), "1.13, 0.97"),
    "2-D 32x32, K 7, causal": (
        Sample((32, 32), 4, 32, False, {"kernel_size": 7, "is_causal": True}),
        "",
    ),
    "3-D 16^3, K 3": (Sample((16, 16, 16), 4, 32, False, {"kernel_size": 3}), "0.43, 0.50"),
}


def machine() -> dict[str, Any]:
    """Versions and devices."""
    info: dict[str, Any] = getattr(mx, "device_info", dict)()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.mac_ver()[0]:
        system = f"macOS {platform.mac_ver()[0]} ({system})"
    facts = {
        "natten_zoo": __version__,
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "system": system,
        "device": info.get("device_name") or info.get("architecture") or str(mx.default_device()),
        "architecture": info.get("architecture"),
        "memory": gigabytes(info.get("memory_size") or info.get("total_memory")),
        "for the GPU": gigabytes(info.get("max_recommended_working_set_size")),
        "blas": blas_in_words(loaded_libraries()),
    }
    return {name: value for name, value in facts.items() if value}


def gigabytes(size: Any) -> str:
    """Bytes in words; nothing of what is no number.

    Examples:
        >>> gigabytes(8 << 30)
        '8.6 GB'
    """
    return f"{size / 1e9:.1f} GB" if isinstance(size, int) and size > 0 else ""


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


def tiers() -> dict[str, str]:
    """`"runs"`, or why not, of every tier."""
    verdicts = {}
    for name, answers in backend.get_support_matrix().items():
        verdicts[name] = next((answer for answer in answers.values() if answer != "yes"), "runs")
    return verdicts


@contextmanager
def on_cpu() -> Iterator[None]:
    """Computes on the CPU, whose float32 is float32: a GPU's matrix units may round to TF32."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def product_error() -> float:
    """How far MLX's own float32 matrix product is off on the default device.

    Relative to the largest value of the exact product: about 1e-7, or 1e-3 where factors are
    rounded to TF32. The kernels do not use it; the layers of a model do.
    """
    a, b = (np.random.default_rng(i).standard_normal((256, 256), np.float32) for i in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.abs(np.array(mx.array(a) @ mx.array(b)) - exact).max() / np.abs(exact).max())


def compare(tier: str, name: str, dtype: str) -> dict[str, Any]:
    """A tier's error on a sample, and whether that is right; and the kernels built for it."""
    function, arrays = problem(SAMPLES[name], dtype)
    row: dict[str, Any] = {"tier": tier, "problem": name, "dtype": dtype}
    try:
        with ops.use_backend(tier):
            built = ops.prepare(function, *arrays, gradients=True)
            row |= {"built": built.built, "build seconds": built.seconds if built.built else 0.0}
            got = results(function, arrays)
    except (RuntimeError, ValueError) as failure:
        return {**row, "right": False, "failure": " ".join(str(failure).split())[:200]}
    with on_cpu(), ops.use_backend(pure.NAME):
        wanted = results(function, [a.astype(mx.float32) for a in arrays])
    error = max(distance(x, y) for x, y in zip(got, wanted, strict=True))
    return {**row, "right": error <= TOLERANCE[dtype], "error": error}


def compare_model(tier: str) -> dict[str, Any]:
    """The packaged model on the packaged images, with a tier and with the reference."""
    from ..data import Preprocess
    from ..models import create_model

    model = create_model(MODEL, pretrained=True)
    record = model.record
    assert record is not None
    samples = sorted(Path(__file__).parents[1].joinpath("assets", "samples").glob("*.png"))
    images = mx.stack([Preprocess.from_record(record)(path) for path in samples])
    row: dict[str, Any] = {"tier": tier, "problem": MODEL, "dtype": "float32"}
    try:
        with ops.use_backend(tier):
            got = model(images)
            mx.eval(got)
    except (RuntimeError, ValueError) as failure:
        return {**row, "right": False, "failure": " ".join(str(failure).split())[:200]}
    with on_cpu(), ops.use_backend(pure.NAME):
        wanted = model(images)
        mx.eval(wanted)
    same = bool(mx.array_equal(got.argmax(-1), wanted.argmax(-1)))
    error = distance(got, wanted)
    return {**row, "right": same and error <= MODEL_TOLERANCE, "error": error}


def ways(tier: str) -> dict[str, Core | None]:
    """Columns of the times, and the core that multiplies where that is not the tier's choice."""
    columns: dict[str, Core | None] = {tier: None, pure.NAME: None, "dense mask": None}
    return {**columns, "matrices alone": MATRIX} if tier == "fast_metal" else columns


def timings(tier: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Times of a tier beside the pure tier, MLX's attention with a mask, and matrices alone."""
    for name in TIMED:
        sample = SAMPLES[name]
        for way, core in ways(tier).items():
            function, arrays = problem(sample, "float16", BATCH[tier])
            if way == "dense mask":
                function = dense(sample)
            backend_name = way if way in backend.TIERS else tier
            with ops.use_backend(backend_name), use_core(core):
                measured = times(function, arrays, rounds)
            yield {"tier": tier, "batch": BATCH[tier], "problem": name, "way": way, **measured}


def small_timings(tier: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Times of a tier on the problems that natten-mlx publishes, beside what it publishes."""
    for name, (sample, published) in PUBLISHED.items():
        function, arrays = problem(sample, "float32")
        with ops.use_backend(tier):
            measured = times(function, arrays, rounds)
        yield {"tier": tier, "problem": name, **measured, "natten-mlx, M4 Max": published}


def problem(
    sample: Sample, dtype: str, batch: int = 1
) -> tuple[Callable[..., mx.array], list[mx.array]]:
    """An operator and the arrays to call it with, always the same ones."""
    hood = sample.hood
    keys = mx.random.split(mx.random.key(0), 4)
    shape = (batch, *sample.spatial, sample.heads, sample.head_dim)
    arrays = [mx.random.normal(shape, key=k) for k in keys[:3]]
    if sample.has_rpb:
        arrays.append(mx.random.normal((sample.heads, *hood.bias_shape), key=keys[3]))
    arrays = [a.astype(getattr(mx, dtype)) for a in arrays]
    mx.eval(arrays)

    def function(query: mx.array, key: mx.array, value: mx.array, *rpb: mx.array) -> mx.array:
        bias = rpb[0] if rpb else None
        return cast(mx.array, ops.attend(hood, query, key, value, rpb=bias, return_lse=False))

    return function, arrays


def dense(sample: Sample) -> Callable[..., mx.array]:
    """MLX's own attention over all tokens, with the neighborhood as a mask and without a bias."""
    axes = [sample.hood.mask(axis, length) for axis, length in enumerate(sample.spatial)]
    mask = mx.array(reduce(np.kron, axes).astype(bool))  # [queries, keys]

    def function(query: mx.array, key: mx.array, value: mx.array, *rpb: mx.array) -> mx.array:
        heads_first = (x.flatten(1, -3).swapaxes(1, 2) for x in (query, key, value))
        scale = sample.head_dim**-0.5
        return mx.fast.scaled_dot_product_attention(*heads_first, scale=scale, mask=mask)

    return function


def results(function: Callable[..., mx.array], arrays: Sequence[mx.array]) -> list[mx.array]:
    """The output, and the gradients of the sum of its cosines."""

    def loss(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        out = function(*arrays)
        return mx.cos(out.astype(mx.float32)).sum(), out

    (_, out), grads = mx.value_and_grad(loss, argnums=list(range(len(arrays))))(*arrays)
    mx.eval(out, grads)
    return [out, *grads]


def distance(got: mx.array, wanted: mx.array) -> float:
    """Largest difference, over the largest value if that exceeds 1; infinite if not finite."""
    ours, exact = (np.array(x.astype(mx.float32), np.float64) for x in (got, wanted))
    if not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - exact).max(initial=0) / max(np.abs(exact).max(initial=0), 1.0))


def times(
    function: Callable[..., mx.array], arrays: Sequence[mx.array], rounds: int
) -> dict[str, float]:
    """Milliseconds: medians of a forward pass, and of one with the gradients."""
    return {
        "forward": median_ms(lambda: mx.eval(function(*arrays)), rounds),
        "both": median_ms(lambda: results(function, arrays), rounds),
    }


def median_ms(function: Callable[[], object], rounds: int) -> float:
    """Milliseconds of a call: the median after two to warm up."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        function()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken[2:])

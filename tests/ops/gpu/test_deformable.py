"""The kernels of deformable attention, in the emulator, against a loop over samples in float64."""

from __future__ import annotations

import math
import subprocess
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops
from natten_zoo.metal import body, source
from natten_zoo.metal.deformable import KERNELS, header
from natten_zoo.ops.deformable import _with_kernels, sample_maps, why_not
from natten_zoo.ops.gpu import deformable
from tests.metal_emulator import KernelFault
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401
from tests.ops.gpu.test_cuda import TYPES, compiler

DTYPES = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}


class Problem(NamedTuple):
    """Arrays of a problem, and the sizes of its maps."""

    values: mx.array
    points: mx.array
    weights: mx.array
    d_out: mx.array
    sizes: tuple[tuple[int, int], ...]


class Result(NamedTuple):
    """What is computed, in float64."""

    out: np.ndarray
    d_values: np.ndarray
    d_points: np.ndarray
    d_weights: np.ndarray


def reference(p: Problem) -> Result:
    """Sample by sample, pixel by pixel; borders as MLX's clip has them: there nothing moves."""
    values, points, weights, d_out = (np.array(x.astype(mx.float32), np.float64) for x in p[:4])
    out, d_values = np.zeros_like(d_out), np.zeros_like(values)
    d_points, d_weights = np.zeros_like(points), np.zeros_like(weights)
    firsts = np.cumsum([0, *(h * w for h, w in p.sizes)])
    for at in np.ndindex(weights.shape):
        b, q, m, level, _ = at
        height, width = p.sizes[level]
        x, y = points[at]
        column = min(math.floor(min(max(x, -1), width)), width - 1)
        row = min(math.floor(min(max(y, -1), height)), height - 1)
        right, down = min(max(x, -1), width) - column, min(max(y, -1), height) - row
        moves = -1 < x < width and -1 < y < height
        for low, far in product((0, 1), (0, 1)):
            if not (0 <= row + low < height and 0 <= column + far < width):
                continue
            token = firsts[level] + (row + low) * width + column + far
            along, across = down if low else 1 - down, right if far else 1 - right
            found = values[b, token, m] @ d_out[b, q, m]
            out[b, q, m] += weights[at] * along * across * values[b, token, m]
            d_values[b, token, m] += weights[at] * along * across * d_out[b, q, m]
            d_weights[at] += along * across * found
            if moves:
                slopes = (1 if far else -1) * along, (1 if low else -1) * across
                d_points[at] += weights[at] * found * np.array(slopes)
    return Result(out, d_values, d_points, d_weights)


def draw(seed: int, dtype: mx.Dtype = mx.float32) -> Problem:
    """A random problem: a third of the points outside, some on pixels, centers and borders."""
    random = np.random.default_rng(seed)
    batch, heads, queries, points = (int(random.integers(1, high)) for high in (3, 4, 8, 5))
    channels = int(random.choice([1, 3, 4, 5, 8, 16, 32, 33, 70]))
    sizes = tuple(
        (int(random.integers(1, 7)), int(random.integers(1, 7)))
        for _ in range(random.integers(1, 5))
    )
    tokens = sum(h * w for h, w in sizes)
    ends = np.array([(w, h) for h, w in sizes])[:, None]
    shape = (batch, queries, heads, len(sizes), points)
    places = random.uniform(-0.7, 1.7, (*shape, 2)) * (ends + 1) - 1
    whole = random.random((*shape, 1)) < 0.3
    places = np.where(whole, places.round(), places)
    edge = random.choice([-1.0, 0.0], (*shape, 2)) + random.choice([0, 1], (*shape, 2)) * ends
    places = np.where(random.random((*shape, 1)) < 0.1, edge, places)
    far = random.choice([-1e30, 1e9, np.inf, -np.inf], (*shape, 2))
    places = np.where(random.random((*shape, 1)) < 0.05, far, places)
    arrays = (
        random.standard_normal((batch, tokens, heads, channels)),
        places,
        random.random(shape),
        random.standard_normal((batch, queries, heads, channels)),
    )
    kinds = (dtype, mx.float32, dtype, dtype)
    return Problem(*(mx.array(a).astype(k) for a, k in zip(arrays, kinds, strict=True)), sizes)


def run(p: Problem) -> Result:
    """By the kernels."""
    layout = deformable.Layout.of(p.values, p.points, p.sizes)
    out = deformable.forward(layout, *p[:3])
    results = (out, *deformable.backward(layout, *p[:4]))
    assert [r.dtype for r in results] == [p.values.dtype] * 2 + [mx.float32, p.values.dtype]
    return Result(*(np.array(r.astype(mx.float32)) for r in results))


def assert_close(found: Result, expected: Result, tolerance: float) -> None:
    for name, ours, theirs in zip(Result._fields, found, expected, strict=True):
        scale = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(
            ours, theirs, atol=tolerance * scale, rtol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_problems(metal, dtype, seed):  # noqa: F811
    problem = draw(seed, dtype)
    assert_close(run(problem), reference(problem), DTYPES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_more_random_problems(metal, seed):  # noqa: F811
    dtype = list(DTYPES)[seed % 3]
    problem = draw(seed, dtype)
    assert_close(run(problem), reference(problem), DTYPES[dtype])


def test_mlx_operations_agree_on_borders_too():
    """The same gradients whether a GPU is there or not, at every pixel, border and beyond."""
    line = np.array([-9, -1.5, -1, -0.5, 0, 0.25, 1, 1.75, 2, 2.5, 3, 3.5, 4, 9], np.float32)
    places = np.stack(np.meshgrid(line, line), axis=-1).reshape(1, -1, 1, 1, 1, 2)
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape) for shape in ((1, 12, 1, 2), (1, len(line) ** 2, 1, 2))]
    weights = random.random(places.shape[:-1])
    values, d_out, weights = (mx.array(a.astype(np.float32)) for a in (*arrays, weights))
    problem = Problem(values, mx.array(places), weights, d_out, ((3, 4),))
    with ops.use_backend("pure"):
        function = partial(sample_maps, sizes=problem.sizes)
        [out], gradients = mx.vjp(function, [values, problem.points, weights], [d_out])
    found = Result(np.array(out), *map(np.array, gradients))
    assert_close(found, reference(problem), 2e-6)


def test_every_way_in_is_by_kernels_and_differentiable(metal):  # noqa: F811
    problem = draw(7)
    values, points, weights, d_out, sizes = problem
    assert why_not(values, points, sizes) is None
    _with_kernels.cache_clear()
    [out], gradients = mx.vjp(partial(sample_maps, sizes=sizes), [values, points, weights], [d_out])
    expected = reference(problem)
    assert_close(Result(np.array(out), *map(np.array, gradients)), expected, 2e-6)


def one_square() -> Problem:
    """All samples between the same four pixels."""
    random = np.random.default_rng(0)
    shape = (1, 40, 1, 1, 4)
    arrays = [
        *((random.standard_normal((1, 4, 1, 4)), random.uniform(0, 1, (*shape, 2)))),
        *(random.random(shape), random.standard_normal((1, 40, 1, 4))),
    ]
    return Problem(*(mx.array(a.astype(np.float32)) for a in arrays), ((2, 2),))


def test_the_gradient_of_values_is_the_same_in_every_run(metal):  # noqa: F811
    """Many samples of one pixel, whose sum depends on its order."""
    problem = one_square()
    first, second = run(problem), run(problem)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert_close(first, reference(problem), 2e-6)
    turned = Problem(
        problem.values, problem.points[:, ::-1], problem.weights[:, ::-1],
        problem.d_out[:, ::-1], problem.sizes,
    )  # fmt: skip
    assert not np.array_equal(run(turned).d_values, first.d_values)  # or it would show nothing


def test_when_there_is_no_kernel(metal):  # noqa: F811
    values, points, _, _, sizes = draw(1)
    with ops.use_backend("pure"):
        assert why_not(values, points, sizes) == "the tier is forced to be pure"
    with ops.exporting("metal"):
        assert why_not(values, points, sizes) == "it is being exported"
    assert "none for mlx.core.float64" in str(why_not(values.astype(mx.float64), points, sizes))
    assert why_not(values[:0], points[:0], sizes) == "it is empty"
    large = deformable.Layout(1, 2**20, 1, 64, 64, 4, ((1024, 1024),), mx.float32)
    assert "2^31" in str(deformable.why_not(large))


def test_a_kernel_that_cannot_be_built_is_done_without(metal, monkeypatch, caplog):  # noqa: F811
    def refuse(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("no such GPU")

    monkeypatch.setattr(deformable, "_built", refuse)
    deformable._tried.cache_clear()
    problem = draw(3)
    out = sample_maps(*problem[:3], problem.sizes)
    deformable._tried.cache_clear()
    np.testing.assert_allclose(out, reference(problem).out, atol=1e-5)
    assert "no such GPU. Falling back" in caplog.text


def test_without_a_gpu_it_is_said():
    values, points, _, _, sizes = draw(1)
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        assert why_not(values, points, sizes) == (
            "there is no GPU, or it is not the default device"
        )


def test_shapes_are_checked():
    values, points, weights, _, sizes = draw(2)
    for arrays, name in (
        ((values[:, 1:], points, weights), "values"),
        ((values, points[..., :1], weights), "points"),
        ((values, points, weights[:, :0]), "weights"),
    ):
        with pytest.raises(ValueError, match=rf"\[sample_maps\] '{name}' must be"):
            sample_maps(*arrays, sizes)


DEFECTS = {
    "a border that is a pixel wide": ("sampling.h", "float(width));", "float(width - 1));"),
    "rows and columns swapped": ("sampling.h", "corner & 2 ? spot.down", "corner & 1 ? spot.down"),
    "a map's first token left out": ("deformable_forward", "+ maps[3 * level + 2]", ""),
    "another head's values": ("deformable_forward", "* heads + head) * D", "* heads) * D"),
    "the last channels forgotten": ("deformable_forward", "(D + LANES - 1) / LANES", "D / LANES"),
    "no bound of rows": ("deformable_forward", "if (y < 0 || y >= height ||", "if (y < 0 ||"),
    "a sum that misses lanes": ("deformable_backward_point", "bits > 0", "bits > 1"),
    "gradients beyond the border": ("deformable_backward_point", "spot.inside ?", "true ?"),
    "one square of two": ("deformable_backward_value", "<= key + 1", "<= key"),
    "only the upper squares": ("deformable_backward_value", "int up = 1", "int up = 0"),
    "the border of the maps before": (
        "deformable_backward_value",
        "border += around",
        "border += 0",
    ),
    "one sample too late": ("deformable_backward_value", "low = middle + 1", "low = middle + 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defects_are_found(metal, monkeypatch, defect):  # noqa: F811
    """Each in some of the random problems, by the result or by the emulator."""
    place, right, wrong = DEFECTS[defect]
    assert right in (source(place) if place.endswith(".h") else body(place))

    def spoilt(text: str, name: str) -> str:
        return text.replace(right, wrong) if name == place else text

    before = deformable.header
    monkeypatch.setattr(deformable, "body", lambda name: spoilt(body(name), name))
    monkeypatch.setattr(deformable, "header", lambda *of: spoilt(before(*of), "sampling.h"))
    monkeypatch.setattr(deformable, "_built", deformable._built.__wrapped__)
    for seed in range(12):
        problem = draw(seed)
        try:
            assert_close(run(problem), reference(problem), DTYPES[mx.float32])
        except (AssertionError, KernelFault):
            return
    pytest.fail("nobody noticed")


@pytest.mark.skipif(compiler() is None, reason="needs nvcc (pip install nvidia-cuda-nvcc)")
@pytest.mark.parametrize("lanes", [1, 8, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiles_for_cuda(tmp_path, dtype, lanes):
    constants = {"D": 4 * lanes - 1, "LEVELS": 3, "POINTS": 4, "LANES": lanes}
    source = tmp_path / "kernels.cu"
    text = header("cuda", lanes)
    for name, (inputs, outputs) in KERNELS.items():
        kinds = (
            {mx.int32: "int", mx.float32: "float", dtype: "T"}
            if dtype != mx.float32
            else {mx.int32: "int", mx.float32: "float"}
        )
        typed = {a: kinds[deformable.dtype_of(a, dtype)] for a in (*inputs, *outputs)}
        arrays = [f"const {typed[a]}* {a}" for a in inputs] + [f"{typed[a]}* {a}" for a in outputs]
        values = "\n".join(f"  constexpr int {k} = {v};" for k, v in constants.items())
        text += (
            f"\nnamespace {name} {{\nusing T = {TYPES[dtype]};\n"
            f"__global__ void kernel({', '.join(arrays)}) {{\n{values}\n{body(name)}\n}}\n}}\n"
        )
    source.write_text(text)
    command = [str(compiler()), "-arch=sm_80", "-std=c++17", "-ptx", "-diag-suppress=177"]
    command += [str(source), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "warning" not in result.stderr

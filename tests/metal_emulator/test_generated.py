"""What the emulator and the strict check take for MLX's source is what MLX generates.

MLX writes the source of a custom kernel wherever a function is exported, GPU or not. Its prelude,
which Apple's compiler is given before it, comes from the installed wheel in the emulator, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import mlx.core as mx
import pytest

from natten_zoo.metal import KERNELS, MATRIX, MATRIX_16, MATRIX_M1, NAX, SCALAR_4, SCALAR_8
from natten_zoo.metal.deformable import KERNELS as OF_DEFORMABLE
from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import deformable, kernels
from natten_zoo.ops.gpu.device import platform, use_core
from natten_zoo.ops.problem import Problem
from tests.metal_emulator import metal_kernel

pytestmark = pytest.mark.skipif(platform() == "cuda", reason="MLX writes CUDA here")
REAL = mx.fast.metal_kernel


class Exported:
    """A custom kernel whose calls are exported, beside the emulator's idea of it; gives zeros."""

    names: set[str]

    def __init__(self, **text: Any) -> None:
        self.real, self.ours = REAL(**text), metal_kernel(**text)

    def __call__(self, *, inputs: Sequence[mx.array], **call: Any) -> list[mx.array]:
        found: list[list[Any]] = []

        def keep(node: dict[str, Any]) -> None:
            if node["type"] == "primitive" and node["name"] == "CustomKernel":
                found.append(node["arguments"])

        mx.export_function(keep, lambda *arrays: self.real(inputs=list(arrays), **call), *inputs)
        ((function, source, *launch),) = found
        shapes, dtypes = call["output_shapes"], call["output_dtypes"]
        kernel = self.ours.instance(
            [(x.dtype, x.shape) for x in inputs],
            list(zip(dtypes, shapes, strict=True)),
            call.get("template"),
        )
        assert source.split("\n") == kernel.generated(function).split("\n")
        assert launch[:6] == [*call["grid"], *call["threadgroup"]]
        self.names.add(self.ours.name)
        return [mx.zeros(s, d) for s, d in zip(shapes, dtypes, strict=True)]


@contextlib.contextmanager
def exported() -> Iterator[set[str]]:
    """Exports what is launched; yields the names of the kernels."""
    Exported.names = set()
    with (
        mock.patch.object(mx.fast, "metal_kernel", Exported),
        mock.patch.object(kernels, "_built", kernels._built.__wrapped__),
    ):
        yield Exported.names


@pytest.mark.parametrize("options", [{}, {"dilation": 2, "is_causal": True}], ids=["plain", "not"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "core",
    [MATRIX, MATRIX_M1, MATRIX_16, NAX, SCALAR_4, SCALAR_8],
    ids=lambda c: f"{c.name}{c.rows}x{c.tokens}",
)
def test_every_kernel_and_core(core, rank, dtype, options):
    hood = Neighborhood.of(rank, 3, **options)
    problem = Problem(hood, 1, (9,) * rank, 2, 1, 24, 12, 1.0, dtype, has_rpb=True)
    query, out, logits, lse, stats = (
        mx.zeros((1, *(9,) * rank, 2, *last), kind)
        for last, kind in (
            ((24,), dtype),
            ((12,), dtype),
            ((3**rank,), dtype),
            ((), mx.float32),
            ((2,), mx.float32),
        )
    )
    key, value, rpb = query[..., :1, :], out[..., :1, :], mx.zeros((2, *hood.bias_shape), dtype)
    given = (query, key, value, rpb, None)
    with exported() as names, use_core(core):
        gpu.forward(problem, *given)
        gpu.backward(problem, *given, out, stats, out, lse)
        gpu.qk_backward(problem, query, key, rpb, None, logits)
        gpu.av_backward(problem, logits, value, None, out)
    assert {name.rpartition("_")[0] for name in names} == {f"natten_zoo_{k}" for k in KERNELS}


@pytest.mark.parametrize("core", [MATRIX, NAX, SCALAR_4], ids=lambda c: c.name)
@pytest.mark.parametrize("finer", [None, (3, 2)], ids=["packed", "finer"])
def test_gradients_in_one_array_and_queries_on_a_finer_map(finer, core):
    heads, out = (12, (27, 18)) if finer else (2, (9, 9))
    problem = Problem(
        Neighborhood.of(2, 3), 1, (9, 9), heads, 1, 24, 24, 1.0, mx.float16, finer=finer
    )
    key, query = mx.zeros((1, 9, 9, 1, 24), mx.float16), mx.zeros((1, *out, 2, 24), mx.float16)
    lse, stats = mx.zeros((1, *out, 2)), mx.zeros((1, *out, 2, 2))
    given = (query, key, key, None, None)
    with exported() as names, use_core(core):
        gpu.forward(problem, *given)
        backward = gpu.backward if finer else gpu.backward_packed
        backward(problem, *given, query, stats, query, lse)
    wanted = {f"natten_zoo_{k}" for k in KERNELS if k.startswith("attention_")}
    assert {name.rpartition("_")[0] for name in names} == wanted


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_deformable_attention(dtype):
    layout = deformable.Layout(2, 15, 4, 2, 12, 3, ((3, 3), (2, 3)), dtype)
    values, points = mx.zeros((2, 15, 2, 12), dtype), mx.zeros((2, 4, 2, 2, 3, 2))
    weights, d_out = mx.zeros((2, 4, 2, 2, 3), dtype), mx.zeros((2, 4, 2, 12), dtype)
    with exported() as names:
        deformable.forward(layout, values, points, weights)
        deformable.backward(layout, values, points, weights, d_out)
    assert {n.rpartition("_")[0] for n in names} == {f"natten_zoo_{k}" for k in OF_DEFORMABLE}


# What no kernel of ours has: geometry, scalars and short inputs, atomics, no template at all.
OTHERS = {
    "geometry": ("b[0] = a_shape[0] + a_strides[1] + a_ndim;", [(8, 8)], ()),
    "scalars and short inputs": ("b[0] = a + c[0];", [(), (7,)], (("N", -3), ("IS", True))),
    "attributes": (
        "b[0] = thread_position_in_grid.x + simdgroup_index_in_threadgroup + grid_size.x;",
        [(9,)],
        (("T", mx.bool_), ("U", mx.uint8), ("V", mx.int64)),
    ),
}


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels(name, atomic):
    source, shapes, template = OTHERS[name]
    names = list("ac"[: len(shapes)])
    with exported() as seen:
        mx.fast.metal_kernel(
            name="other",
            input_names=names,
            output_names=["b"],
            source=source,
            header="// no line ends here" if name == "geometry" else "",
            atomic_outputs=atomic,
        )(
            inputs=[mx.zeros(shape) for shape in shapes],
            template=list(template),
            grid=(64, 2, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(64,)],
            output_dtypes=[mx.float32],
        )
    assert seen == {"other"}

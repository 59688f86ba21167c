"""What a launch computes: MLX's signature and semantics, and every collective against NumPy."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import (
    Argument,
    Kernel,
    KernelFault,
    install,
    last_launch,
    metal_kernel,
    options,
    record,
)

BEGIN = "uint i = thread_position_in_grid.x; uint lane = thread_index_in_simdgroup;\n"


def run(
    body: str,
    *inputs: mx.array,
    shape: tuple[int, ...] = (64,),
    dtype: mx.Dtype = mx.float32,
    grid: tuple[int, int, int] = (64, 1, 1),
    threadgroup: tuple[int, int, int] = (64, 1, 1),
    begin: str = BEGIN,
    **more: object,
) -> mx.array:
    call = {k: more.pop(k) for k in ("template", "init_value") if k in more}
    names = ["a", "b", "c"][: len(inputs)]
    kernel = metal_kernel("tested", names, ["out"], begin + body, **more)  # type: ignore[arg-type]
    (out,) = kernel(
        inputs=inputs,
        output_shapes=[shape],
        output_dtypes=[dtype],
        grid=grid,
        threadgroup=threadgroup,
        **call,  # type: ignore[arg-type]
    )
    return out


def test_signature() -> None:
    kernel = Kernel(
        name="k",
        source="out[0] = small[0] + a_shape[0]; uint3 t = thread_position_in_grid;",
        header="",
        inputs=(
            Argument("a", "float16", (8,)),
            Argument("small", "int32", (7,)),
            Argument("scalar", "bfloat16", ()),
        ),
        outputs=(Argument("out", "float32", (2,)),),
        template=(("T", "float32"), ("N", 3), ("F", True)),
    )
    text = kernel.text(entry_point=False)
    assert "template <typename T, int N, bool F>" in text
    wanted = [
        "const device float16_t* a [[buffer(0)]]",
        "const constant int* a_shape [[buffer(1)]]",
        "const constant int32_t* small [[buffer(2)]]",
        "const constant bfloat16_t& scalar [[buffer(3)]]",
        "device float* out [[buffer(4)]]",
        "uint3 thread_position_in_grid [[thread_position_in_grid]]",
    ]
    signature = text.split("custom_kernel_k(\n")[1].split(") {")[0]
    assert [line.strip() for line in signature.split(",\n")] == wanted
    assert "custom_kernel_k<float, 3, 1>" in text


def test_example_of_mlx_documentation() -> None:
    """As in the documentation of `mx.fast.metal_kernel`, with an input that is not contiguous."""
    source = """
        uint elem = thread_position_in_grid.x;
        uint loc = elem_to_loc(elem, inp_shape, inp_strides, inp_ndim);
        T tmp = inp[loc];
        out[elem] = metal::exp(tmp);
    """
    with install():
        assert mx.metal.is_available()
        kernel = mx.fast.metal_kernel(
            "myexp_strided", ["inp"], ["out"], source, ensure_row_contiguous=False
        )
    for a in (
        mx.random.normal((4, 16)),
        mx.random.normal((16, 4)).T,
        mx.random.normal((8, 32))[::2, ::2],
    ):
        (out,) = kernel(  # type: ignore[operator]
            inputs=[a],
            template=[("T", mx.float32)],
            grid=(a.size, 1, 1),
            threadgroup=(256, 1, 1),
            output_shapes=[a.shape],
            output_dtypes=[a.dtype],
        )
        assert mx.allclose(out, mx.exp(a), atol=1e-6)


def test_slice_keeps_its_alignment() -> None:
    """A row-contiguous slice is passed in place, on a Mac as here: vector loads may not fit it."""
    body = "float4 v = ((const device float4*)a)[i]; out[i] = v.x + v.y + v.z + v.w;"
    a = mx.arange(300.0)
    assert mx.array_equal(run(body, a[4:260]), a[4:260].reshape(64, 4).sum(axis=1))
    with pytest.raises(KernelFault, match="misaligned"):
        run(body, a[2:258])
    copied = mx.stack([a, a], axis=1)[2:258, 0]  # not contiguous
    assert mx.array_equal(run(body, copied), a[2:258].reshape(64, 4).sum(axis=1))


VIEWS = {
    "transposed": lambda a: a.T,
    "a part": lambda a: a[1:5, 2:6],
    "backwards": lambda a: a[::-1, 5:1:-2],
    "spread": lambda a: mx.broadcast_to(a[2:3, 1:5], (6, 4)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str) -> None:
    """A kernel that reads strides is given an array as it lies, and no copy is made."""
    a = VIEWS[view](mx.arange(64.0).reshape(8, 8))
    rows, columns = a.shape
    kernel = metal_kernel(
        "strides", ["a"], ["out"],
        "uint i = thread_position_in_grid.x;"
        f"out[i] = a[i / {columns} * a_strides[0] + i % {columns} * a_strides[1]];",
        ensure_row_contiguous=False,
    )  # fmt: skip
    (out,) = kernel(
        inputs=[a],
        output_shapes=[(rows, columns)],
        output_dtypes=[a.dtype],
        grid=(a.size, 1, 1),
        threadgroup=(a.size, 1, 1),
    )
    assert mx.array_equal(out, a)
    assert last_launch().copied_bytes == 0


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.uint8, mx.bool_]
)
def test_dtypes(dtype: mx.Dtype) -> None:
    a = (mx.arange(64) % 7).astype(dtype)
    out = run("out[i] = a[i];", a, dtype=dtype)
    assert out.dtype == dtype
    assert mx.array_equal(out, a)


def test_rounding_of_bfloat16() -> None:
    a = mx.array(np.random.default_rng(0).standard_normal(64).astype(np.float32))
    out = run("out[i] = static_cast<bfloat16_t>(a[i]);", a, dtype=mx.bfloat16)
    assert mx.array_equal(out, a.astype(mx.bfloat16))


def test_attributes() -> None:
    """A grid that threadgroups do not divide: the last ones are smaller."""
    body = """
    uint3 p = thread_position_in_grid, q = thread_position_in_threadgroup;
    uint3 g = threadgroup_position_in_grid, n = threads_per_threadgroup, s = threads_per_grid;
    uint at = (p.z * s.y + p.y) * s.x + p.x;
    uint index = (q.z * n.y + q.y) * n.x + q.x;
    bool right = p.x == g.x * 4 + q.x && p.y == g.y * 3 + q.y;
    right = right && s.x == 10 && s.y == 7 && s.z == 2 && threadgroups_per_grid.x == 3;
    right = right && n.x == (g.x == 2 ? 2 : 4) && n.y == (g.y == 2 ? 1 : 3);
    right = right && dispatch_threads_per_threadgroup.x == 4;
    right = right && index == thread_index_in_threadgroup;
    right = right && thread_index_in_simdgroup == index % 32;
    right = right && simdgroup_index_in_threadgroup == index / 32;
    out[at] = right ? 1.0f : 2.0f;
    """
    out = run(body, shape=(140,), grid=(10, 7, 2), threadgroup=(4, 3, 2), begin="")
    assert mx.array_equal(out, mx.ones(140))


LANES = np.arange(64) % 32
COLLECTIVES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "sum": ("simd_sum(x)", lambda x: np.repeat(x.sum(1), 32)),
    "max": ("simd_max(x)", lambda x: np.repeat(x.max(1), 32)),
    "min": ("simd_min(x)", lambda x: np.repeat(x.min(1), 32)),
    "product": ("simd_product(1 + x / 100)", lambda x: np.repeat((1 + x / 100).prod(1), 32)),
    "prefix": ("simd_prefix_inclusive_sum(x)", lambda x: x.cumsum(1).ravel()),
    "prefix before": ("simd_prefix_exclusive_sum(x)", lambda x: (x.cumsum(1) - x).ravel()),
    "xor": ("simd_shuffle_xor(x, 5)", lambda x: x[:, np.arange(32) ^ 5].ravel()),
    "shuffle": ("simd_shuffle(x, (lane * 7) % 32)", lambda x: x[:, np.arange(32) * 7 % 32].ravel()),
    "broadcast": ("simd_broadcast(x, 9)", lambda x: np.repeat(x[:, 9], 32)),
    "down": ("lane < 30 ? 0 : x; y = simd_shuffle_down(x, 2); y = lane < 30 ? y : 0",
             lambda x: np.pad(x[:, 2:], ((0, 0), (0, 2))).ravel()),
    "rotate": ("simd_shuffle_rotate_up(x, 3)", lambda x: np.roll(x, 3, 1).ravel()),
    "fill": ("simd_shuffle_and_fill_up(x, 8.0f, 3)",
             lambda x: np.pad(x[:, :-3], ((0, 0), (3, 0)), constant_values=8).ravel()),
    "quad": ("quad_sum(x)", lambda x: np.repeat(x.reshape(-1, 4).sum(1), 4)),
    "vote": ("(float)popcount((uint)(ulong)simd_ballot(x > 0))",
             lambda x: np.repeat((x > 0).sum(1), 32)),
    "vote of a quad": ("quad_any(x > 1) ? 1 : 0",
                       lambda x: np.repeat((x.reshape(-1, 4) > 1).any(1), 4)),
    "all of a quad": ("quad_all(x > -1) ? 1 : 0",
                      lambda x: np.repeat((x.reshape(-1, 4) > -1).all(1), 4)),
    "any": ("simd_any(x > 2) ? 1 : 0", lambda x: np.repeat((x > 2).any(1), 32)),
    "vector": ("simd_sum(float2(x, 1)).x", lambda x: np.repeat(x.sum(1), 32)),
    "half": ("(float)simd_max(half(x))", lambda x: np.repeat(x.max(1).astype(np.float16), 32)),
    "bfloat": ("(float)simd_max(bfloat16_t(3))", lambda x: np.full(64, 3.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collective(name: str) -> None:
    expression, wanted = COLLECTIVES[name]
    a = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    body = f"float x = a[i], y = {expression}; out[i] = y;"
    for order in (0, 1, 2):
        with options(order=order):
            out = run(body, mx.array(a))
        np.testing.assert_allclose(np.array(out), wanted(a.reshape(2, 32)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrix_product(dtype: mx.Dtype) -> None:
    body = """
    simdgroup_matrix<T, 8, 8> l, r; simdgroup_matrix<float, 8, 8> s(1.0f);
    simdgroup_load(l, a, 8);
    simdgroup_load(r, b + 8, 16, ulong2(0), true);
    simdgroup_multiply_accumulate(s, l, r, s);
    simdgroup_store(s, out, 8);
    """
    rng = np.random.default_rng(2)
    a, b = (mx.array(rng.standard_normal(n).astype(np.float32)).astype(dtype) for n in (64, 144))
    out = run(body, a, b, grid=(32, 1, 1), begin="", template=[("T", dtype)])
    left = a.astype(mx.float32).reshape(8, 8)
    right = b.astype(mx.float32)[8:136].reshape(8, 16)[:, :8]
    assert mx.allclose(out.reshape(8, 8), left @ right.T + mx.eye(8), atol=1e-5)


def test_atomic_outputs_and_initial_value() -> None:
    body = "atomic_fetch_add_explicit(&out[i % 4], a[i], memory_order_relaxed);"
    out = run(body, mx.ones(64), shape=(4,), atomic_outputs=True, init_value=2)
    assert mx.array_equal(out, mx.full(4, 18.0))
    with options(raise_faults=False), record() as launches:
        run(body, mx.ones(64), shape=(4,), atomic_outputs=True)
    assert launches[0].reports[0].kind == "uninit-atomic"


def test_unchecked_run_gives_the_same() -> None:
    a = mx.random.normal((64,))
    body = "float x = a[i]; for (int k = 0; k < 5; k++) x = simd_sum(exp2(x)) * 0.01f; out[i] = x;"
    with options(checked=False):
        fast = run(body, a)
    assert mx.array_equal(fast, run(body, a))

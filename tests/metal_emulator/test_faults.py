"""Planted run-time faults: each must be reported, under every order of the lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from tests.metal_emulator import KernelFault, last_launch, metal_kernel, options

BEGIN = (
    "uint i = thread_position_in_grid.x; uint l = thread_index_in_threadgroup; "
    "uint lane = thread_index_in_simdgroup;\n"
)
SHARED = "threadgroup float t[64]; "
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup); "
LANES_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup); "


class Case(NamedTuple):
    """A body over a[128] -> b[128] in threadgroups of 64, and the kind of report it must draw."""

    body: str
    kind: str | None
    threads: int = 128
    outputs: int = 128
    dtype: str = "float32"


CASES = {
    # none of these is a fault
    "clean exchange": Case(SHARED + "t[l] = a[i]; " + BARRIER + "b[i] = t[63 - l];", None),
    "clean exchange in a simdgroup": Case(
        SHARED + "t[l] = a[i]; " + LANES_BARRIER + "b[i] = t[l ^ 1];", None
    ),
    "clean two rounds": Case(
        SHARED + "for (int k = 0; k < 2; k++) { t[l] = a[i]; " + BARRIER + "b[i] = t[63 - l]; "
        "" + BARRIER + "}",
        None,
    ),
    "clean last threadgroup of another size": Case("b[i] = simd_sum(a[i]);", None, 100, 100),
    "clean quads, each at its own pace": Case(
        "float s = a[i]; for (uint k = 0; k < lane / 4; k++) s += quad_shuffle_xor(s, 1) / 64; "
        "b[i] = quad_any(s > 3) ? s : 0;",
        None,
    ),
    "clean atomics": Case(
        "threadgroup atomic_uint n; if (l == 0) atomic_store_explicit(&n, 0, memory_order_relaxed);"
        + BARRIER
        + "atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed); "
        + BARRIER
        + "b[i] = atomic_load_explicit(&n, memory_order_relaxed);",
        None,
    ),
    "clean bytes beside each other": Case(
        "threadgroup uchar t[64]; t[l] = l; " + BARRIER + "b[i] = t[63 - l];", None
    ),
    "clean halves beside each other": Case(
        "threadgroup half t[64]; t[l] = l; " + BARRIER + "b[i] = t[63 - l];", None, dtype="float16"
    ),
    # bounds
    "device read beyond the end": Case("b[i] = a[i + 1];", "out-of-bounds"),
    "device read before the start": Case("b[i] = a[int(i) - 1];", "out-of-bounds"),
    "device write beyond the end": Case("b[i + 1] = a[i];", "out-of-bounds"),
    "device read far away": Case("b[i] = a[i + 100000000];", "out-of-bounds"),
    "vector read across the end": Case(
        "b[i] = ((const device packed_float4*)(a + i))->w;", "out-of-bounds"
    ),
    "threadgroup index": Case(
        SHARED + "t[l + 1] = a[i]; " + BARRIER + "b[i] = t[l];", "array-out-of-bounds"
    ),
    "threadgroup pointer": Case(
        SHARED + "threadgroup float* p = t + 1; p[l] = a[i]; " + BARRIER + "b[i] = l ? t[l] : 0;",
        "out-of-bounds",
    ),
    "private array": Case(
        "float p[4]; for (int k = 0; k < 4; k++) p[k] = a[i]; b[i] = p[i / 25];",
        "array-out-of-bounds",
    ),
    "misaligned vector": Case("b[i] = ((const device float4*)(a + 1))[0].x;", "misaligned"),
    "misaligned struct": Case(
        "struct alignas(16) P { float e[4]; }; threadgroup P t[64]; "
        "t[l] = *(const device P*)(a + l + 1); " + BARRIER + "b[i] = t[l].e[0];",
        "misaligned",
    ),
    "misaligned threadgroup vector": Case(
        "alignas(8) "
        + SHARED
        + "t[l] = a[i]; "
        + BARRIER
        + "b[i] = ((threadgroup float2*)(t + 1))[l / 4].x;",
        "misaligned",
    ),
    "threadgroup vector at the alignment of its elements": Case(
        SHARED + "t[l] = a[i]; " + BARRIER + "b[i] = ((threadgroup float2*)t)[l / 2].x;",
        "misaligned",
    ),
    "clean threadgroup vector": Case(
        "alignas(8) "
        + SHARED
        + "t[l] = a[i]; "
        + BARRIER
        + "b[i] = ((threadgroup float2*)t)[l / 2].x;",
        None,
    ),
    "write to an input": Case("((device float*)a)[i] = 1; b[i] = 0;", "write-to-const"),
    # races
    "missing barrier": Case(SHARED + "t[l] = a[i]; b[i] = t[63 - l];", "race-"),
    "missing barrier before the next round": Case(
        SHARED + "for (int k = 0; k < 2; k++) { t[l] = a[i]; " + BARRIER + "b[i] = t[63 - l]; }",
        "race-",
    ),
    "missing barrier within a simdgroup": Case(
        SHARED + "t[l] = 0; " + BARRIER + "t[l] = a[i]; b[i] = t[l ^ 1];", "-same-simdgroup"
    ),
    "read by many, then written": Case(
        SHARED + "t[l] = a[i]; " + BARRIER + "float x = t[0]; if (l == 5) t[0] = 1; b[i] = x;",
        "race-",
    ),
    "write by two lanes": Case(
        SHARED + "t[l / 2] = a[i]; " + BARRIER + "b[i] = t[l / 2];", "race-WW-same-simdgroup"
    ),
    "write by two simdgroups": Case(
        SHARED + "t[l % 32] = a[i]; " + BARRIER + "b[i] = t[l % 32];", "race-WW"
    ),
    "write by two threadgroups": Case("b[l] = a[i];", "race-WW-cross-threadgroup", outputs=64),
    "read of another threadgroup's output": Case(
        "b[i] = a[i]; if (i == 127) b[i] = b[3];", "cross-threadgroup"
    ),
    "barrier without memory": Case(
        SHARED + "t[l] = a[i]; threadgroup_barrier(mem_flags::mem_none); b[i] = t[63 - l];", "race-"
    ),
    "barrier of device memory only": Case(
        SHARED + "t[l] = a[i]; threadgroup_barrier(mem_flags::mem_device); b[i] = t[63 - l];",
        "race-",
    ),
    "simdgroup barrier between simdgroups": Case(
        SHARED + "t[l] = a[i]; " + LANES_BARRIER + "b[i] = t[63 - l];", "race-"
    ),
    # uninitialised memory
    "threadgroup memory never written": Case(
        SHARED + "if (l < 60) t[l] = a[i]; " + BARRIER + "b[i] = t[l];", "uninit-threadgroup-read"
    ),
    "threadgroup memory of the last threadgroup": Case(
        SHARED + "if (i < 64) t[l] = a[i]; " + BARRIER + "b[i] = t[l];", "uninit-threadgroup-read"
    ),
    "output read before it is written": Case("b[i] += a[i];", "uninit-output-read"),
    "output never written": Case("if (i != 5) b[i] = a[i];", "unwritten-output"),
    "variable never set": Case("float x; if (i < 64) x = 1; b[i] = x;", "uninitialised-value"),
    # divergence
    "barriers of two branches": Case(
        SHARED + "t[l] = a[i]; if (l < 32) " + BARRIER + "else " + BARRIER + "b[i] = t[l];",
        "barrier-divergence",
    ),
    "return before a barrier": Case(
        SHARED + "b[i] = 0; if (i >= 100) return; t[l] = a[i]; " + BARRIER + "b[i] = t[l];",
        "barrier-divergence",
    ),
    "reductions of two branches": Case(
        "float s = 0; if (lane < 16) s = simd_sum(a[i]); else s = simd_sum(a[i]) + 1; b[i] = s;",
        "divergent-collective",
    ),
    "reduction after a return": Case(
        "b[i] = 0; if (i >= 100) return; b[i] = simd_sum(a[i]);", "partial-collective"
    ),
    "shuffle from an inactive lane": Case(
        "if (lane >= 16) { b[i] = 0; return; } b[i] = simd_shuffle(a[i], 20);",
        "simd-shuffle-inactive-lane",
    ),
    "shuffle within a divided quad": Case(
        "float s = a[i]; if (lane & 1) s = quad_shuffle_xor(a[i], 1); b[i] = s;",
        "simd-shuffle-inactive-lane",
    ),
    "vote of a divided quad": Case(
        SHARED + "bool s = false; if (lane & 1) s = quad_any(a[i] > 0); "
        "else s = quad_any(a[i] < 0); b[i] = s;",
        "divergent-collective",
    ),
    "exchange behind a load of some lanes": Case(
        "float s = 0; if (lane & 1) s = a[i]; b[i] = simd_shuffle_xor(s, 1);", "diverged-collective"
    ),
    "vote behind loops of different lengths": Case(
        "float s = 0; for (uint k = 0; k < lane % 4; k++) s += a[k]; b[i] = quad_any(s > 3);",
        "diverged-collective",
    ),
    "exchange in a quad whose pairs took different ways, and have exchanged since": Case(
        "float s = 0; if (lane & 2) s = a[i]; s = simd_shuffle_xor(s, 1); "
        "b[i] = simd_shuffle_xor(s, 2);",
        "diverged-collective",
    ),
    "clean exchange in pairs that took different ways, then in a quad": Case(
        "float s = 0; if (lane & 2) s = a[i]; s = simd_shuffle_xor(s, 1); "
        "simdgroup_barrier(mem_flags::mem_none); b[i] = simd_shuffle_xor(s, 2);",
        None,
    ),
    "clean exchange behind a load of some lanes and a barrier": Case(
        "float s = 0; if (lane & 1) s = a[i]; simdgroup_barrier(mem_flags::mem_none); "
        "b[i] = simd_shuffle_xor(s, 1);",
        None,
    ),
    "shuffle from no lane": Case("b[i] = simd_shuffle(a[i], 40);", "simd-shuffle-bad-lane"),
    "matrix by half a simdgroup": Case(
        "b[i] = 0; if (lane < 16) { simdgroup_float8x8 m(1.0f); simdgroup_multiply(m, m, m); "
        "b[i] = m.thread_elements()[0]; }",
        "simdgroup-matrix-divergent",
    ),
    # arithmetic and limits
    "integer division by zero": Case("int z = (int)a[i]; b[i] = 100 / z;", "division-by-zero"),
    "signed overflow": Case("int z = (int)i + 2147483600; b[i] = z;", "signed-overflow"),
    "too much threadgroup memory": Case(
        "threadgroup float t[9000]; t[l] = a[i]; " + BARRIER + "b[i] = t[l];", "threadgroup-memory"
    ),
    "too much in two variables": Case(
        "threadgroup float t[5000]; threadgroup float u[5000]; t[l] = u[l] = a[i]; b[i] = t[l];",
        "threadgroup-memory",
    ),
}


def launch(body: str, threads: int = 128, outputs: int = 128, dtype: str = "float32") -> np.ndarray:
    kernel = metal_kernel("planted", ["a"], ["b"], BEGIN + body)
    (b,) = kernel(
        inputs=[np.arange(threads, dtype=dtype)],
        output_shapes=[(outputs,)],
        output_dtypes=[dtype],
        grid=(threads, 1, 1),
        threadgroup=(64, 1, 1),
    )
    return b


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_planted_fault(case: Case) -> None:
    for order in (0, 1, 2):
        with options(raise_faults=False, order=order, reconverges=False):
            launch(case.body, case.threads, case.outputs, case.dtype)
        kinds = [r.kind for r in last_launch().reports]
        if case.kind is None:
            assert not kinds, last_launch().reports[0]
        else:
            assert any(case.kind in kind for kind in kinds), (order, kinds)


def test_fault_raises_and_says_where() -> None:
    body = "float x = a[i];\nb[i] = x + a[i + 1];"
    with pytest.raises(KernelFault, match=r"out-of-bounds\] body.metal:3 read of 4 bytes") as e:
        launch(body)
    assert "byte offset 512 of buffer 'a' (512 bytes)" in str(e.value)
    assert "threadgroup (1,0,0) thread (63,0,0) simdgroup 1 lane 31" in str(e.value)


def test_race_names_both_accesses() -> None:
    with options(raise_faults=False):
        launch(SHARED + "t[l] = 0;\n" + BARRIER + "\nt[l] = a[i];\nb[i] = t[63 - l];")
    race = next(r for r in last_launch().reports if r.kind in ("race-RW", "race-WR"))
    assert {race.place, race.message.rsplit(" at ", 1)[1]} == {"body.metal:4", "body.metal:5"}


@pytest.mark.parametrize(
    ("threadgroup", "message"),
    [((2048, 1, 1), "at most 1024 threads"), ((0, 1, 1), "positive"), ((64, 1), "three")],
)
def test_launch_that_metal_refuses(threadgroup: Sequence[int], message: str) -> None:
    kernel = metal_kernel("planted", ["a"], ["b"], BEGIN + "b[i] = a[i];")
    with pytest.raises(ValueError, match=message):
        kernel(
            inputs=[np.zeros(4096, np.float32)],
            output_shapes=[(4096,)],
            output_dtypes=["float32"],
            grid=(4096, 1, 1),
            threadgroup=threadgroup,
        )

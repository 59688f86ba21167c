"""The counters, on kernels whose traffic and arithmetic can be told by hand."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import Counts, last_launch, metal_kernel, options

BEGIN = "uint i = thread_position_in_grid.x; uint l = thread_index_in_threadgroup;\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def counts(body: str, threads: int = 128, template: dict[str, int] | None = None) -> Counts:
    kernel = metal_kernel("counted", ["a"], ["b"], BEGIN + body)
    with options(count_operations=True):
        kernel(
            inputs=[np.ones(1024, np.float32)],
            output_shapes=[(threads,)],
            output_dtypes=["float32"],
            grid=(threads, 1, 1),
            threadgroup=(64, 1, 1),
            template=list((template or {}).items()),
        )
    return last_launch().counts


def test_bytes_and_lines() -> None:
    """Every thread reads one float of its own and one that all share."""
    c = counts("b[i] = a[i] + a[512];")
    assert (c.threads, c.threadgroups) == (128, 2)
    assert (c.device_read_bytes, c.device_write_bytes) == (2 * 512, 512)
    assert c.device_read_lines == 2 * (2 + 1)  # per threadgroup: 256 bytes, and the shared line
    assert c.device_write_lines == 2 * 2


def test_threadgroup_memory_and_barriers() -> None:
    c = counts(f"threadgroup float t[64]; t[l] = a[i]; {BARRIER} b[i] = t[63 - l] + t[l ^ 1];")
    assert (c.threadgroup_read_bytes, c.threadgroup_write_bytes) == (2 * 512, 512)
    assert c.threadgroup_barriers == 2
    assert last_launch().threadgroup_bytes == 256


def test_collectives() -> None:
    body = """
    simdgroup_float8x8 m(1.0f);
    for (int k = 0; k < 3; k++) simdgroup_multiply_accumulate(m, m, m, m);
    float x = simd_sum(m.thread_elements()[0]) + simd_shuffle_xor(a[i], 1);
    b[i] = simd_any(x > 0) ? x : 0;
    simdgroup_barrier(mem_flags::mem_none);
    """
    c = counts(body)
    assert c.matrix_multiplies == 3 * 4  # four simdgroups
    assert (c.reductions, c.shuffles, c.votes, c.simdgroup_barriers) == (4, 4, 4, 4)


@pytest.mark.parametrize("rounds", [1, 10, 100])
def test_arithmetic(rounds: int) -> None:
    """A loop of known length: a fused multiply-add and an exp2 a round and thread."""
    body = "float x = a[i]; for (int k = 0; k < N; k++) x = exp2(x * x + a[k]); b[i] = x;"
    c = counts(body, template={"N": rounds})
    assert c.fmas == c.special_operations == 128 * rounds
    assert c.int_divisions == 0


def test_copies_of_inputs() -> None:
    """MLX transposes a matrix before the launch: 64 floats are read and written."""
    a = mx.arange(64, dtype=mx.float32).reshape(8, 8)
    kernel = metal_kernel("copied", ["a"], ["b"], BEGIN + "b[i] = a[i];")
    for given, copied in ((a, 0), (a.T, 2 * 256)):
        kernel(
            inputs=[given],
            output_shapes=[(64,)],
            output_dtypes=[mx.float32],
            grid=(64, 1, 1),
            threadgroup=(64, 1, 1),
        )
        assert last_launch().copied_bytes == copied


@pytest.mark.parametrize(("lanes", "rounds"), [(32, 10), (1, 10)])
def test_a_simdgroup_takes_as_long_as_its_busiest_lane(lanes: int, rounds: int) -> None:
    body = "float x = a[i]; if (i % 32 < M) for (int k = 0; k < N; k++) x = x * x + a[k]; b[i] = x;"
    assert counts(body, template={"M": lanes, "N": rounds}).fmas == 128 * rounds


def test_half_conversions() -> None:
    assert counts("half x = half(a[i]); b[i] = float(x) * float(x);").half_conversions == 128


def test_divisions() -> None:
    c = counts("b[i] = a[i % uint(a[3] + 6)] / a[i];")
    assert c.int_divisions == c.special_operations == 128

"""matmul2d of cooperative tensors: right in MLX's layout, and each planted fault is seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from tests.metal_emulator import KernelFault, StrictError, last_launch, metal_kernel, options

HEADER = "#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>\n"
# sum[16, 32] = 1 + left[16, 16] right[16, 32], or right[32, 16] transposed, by one simdgroup.
BODY = """
constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(
    16, 32, 16, false, TURNED, true,
    mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
mpp::tensor_ops::matmul2d<shape, metal::execution_simdgroup> product;
auto a = product.template get_left_input_cooperative_tensor<T, T, float>();
auto b = product.template get_right_input_cooperative_tensor<T, T, float>();
auto c = product.template get_destination_cooperative_tensor<
    metal::remove_addrspace_t<decltype(a)>, metal::remove_addrspace_t<decltype(b)>, float>();
const uint lane = thread_index_in_simdgroup;
const uint row = (lane >> 2 & 4) | (lane >> 1 & 3), column = ((lane >> 2 & 2) | (lane & 1)) * 4;
for (uint e = 0; e < 8; e++) a[e] = left[(row + e / 4 * 8) * 16 + column + e % 4];
for (uint e = 0; e < 16; e++) {
  const uint other = e / 8 * 16, r = row + e / 4 % 2 * 8, c4 = column + e % 4;
  b[e] = TURNED ? right[(other + r) * 16 + c4] : right[r * 32 + other + c4];
  c[e] = 1.0f;
}
product.run(a, b, c);
for (uint e = 0; e < 16; e++)
  sum[(row + e / 4 % 2 * 8) * 32 + e / 8 * 16 + column + e % 4] = c[e];
"""


def multiply(body: str = BODY, turned: bool = False, header: str = HEADER) -> float:
    """The largest error of a launch."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-3, 4, n).astype(np.float16) for n in ((16, 16), (16, 32)))
    given = np.ascontiguousarray(right.T) if turned else right
    kernel = metal_kernel("tensors", ["left", "right"], ["sum"], body, header)
    (found,) = kernel(
        inputs=[left, given],
        template=[("T", np.dtype(np.float16)), ("TURNED", turned)],
        output_shapes=[(16, 32)],
        output_dtypes=["float32"],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
    )
    return float(np.abs(found - 1 - left.astype(np.float32) @ right).max())


@pytest.mark.parametrize("turned", [False, True])
def test_products(turned):
    assert multiply(turned=turned) == 0
    assert last_launch().counts.tensor_multiplies == 1


class Fault(NamedTuple):
    """What stands for what in the kernel, and what must give it away."""

    before: str
    after: str
    told: str


FAULTS = {
    "no dimension of 32": Fault("16, 32, 16, false", "16, 16, 16, false", "must be 32"),
    "a product of another layout": Fault("16, 32, 16, false", "16, 16, 32, false", "nobody knows"),
    "several simdgroups": Fault("execution_simdgroup>", "execution_simdgroups<2>>", "alone"),
    "one thread": Fault("execution_simdgroup>", "execution_thread>", "alone"),
    "integers": Fault("left_input_cooperative_tensor<T, T", "left_input_cooperative_tensor<int, T",
                      "not multiplied"),
    "inputs in each other's places": Fault("run(a, b, c)", "run(b, a, c)", "no matching"),
    "an input for the result": Fault("run(a, b, c)", "run(a, b, a)", "no matching"),
    "the types of the inputs": Fault("remove_addrspace_t<decltype(a)>", "remove_addrspace_t<T>",
                                     "no members"),
    "an element too many": Fault("e < 8; e++", "e <= 8; e++", "array-out-of-bounds"),
    "an element unset": Fault("e = 0; e < 8; e++", "e = 1; e < 8; e++", "uninitialised-value"),
    "a result unset": Fault("c[e] = 1.0f", ";", "uninitialised-value"),
    "some lanes": Fault("product.run", "if (lane < 16) product.run", "simdgroup-matrix-divergent"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_planted_faults(fault):
    assert fault.before in BODY
    with pytest.raises((StrictError, KernelFault), match=fault.told):
        multiply(BODY.replace(fault.before, fault.after))


WRONG = {
    "the other order of right": ("TURNED, true", "!TURNED, true"),
    "a square for the other": ("other = e / 8 * 16", "other = 16 - e / 8 * 16"),
    "columns two by two": ("(lane & 1)) * 4", "(lane & 1)) * 2"),
    "sums from nothing": ("mode::multiply_accumulate", "mode::multiply"),
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_what_only_numbers_tell(change):
    assert change[0] in BODY
    with options(raise_faults=False):
        assert not multiply(BODY.replace(*change)) < 0.5


def test_another_generation_has_another_layout():
    with options(tensor_layout=1):
        assert multiply() > 1


def test_needs_metal_4():
    """Without its header a kernel is built as Metal 3.1, where there is no matmul2d."""
    with pytest.raises(StrictError, match="mpp"):
        multiply(header="")

"""Torch's contestants of the benchmark compute neighborhood attention and its gradients."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import ops

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from benchmark_contestants import Case

CASES = [
    Case("1-D", (20,), 2, 5, is_causal=True),
    Case("2-D", (10, 13), 2, (3, 5), dilation=2),
    Case("3-D", (4, 5, 6), 1, 3),
]


@pytest.fixture(scope="module")
def contestants():
    """The script, imported by tests that run: others make sure that nothing imports torch."""
    pytest.importorskip("torch")
    import torch_contestants

    return torch_contestants


def check(contestants, name, case, gradients=True):
    """Output and gradients beside those of the operator, which takes the heads last."""
    import torch

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, *case.spatial, case.heads, 32), np.float32) for _ in range(4)]
    function = getattr(ops, f"na{len(case.spatial)}d")

    def operator(*qkv):
        return [function(*qkv, case.kernel_size, 1, case.dilation, case.is_causal)]

    query, key, value, d_out = map(mx.array, arrays)
    wanted = mx.vjp(operator, [query, key, value], [d_out])
    leaves = [torch.from_numpy(x).flatten(1, -3).transpose(1, 2).contiguous() for x in arrays]
    for x in leaves[:3] if gradients else ():
        x.requires_grad_()
    out = contestants.PEERS[name](case)(*leaves[:3])
    found = [[out]] + ([torch.autograd.grad(out, leaves[:3], leaves[3])] if gradients else [])
    for ours, theirs in zip(wanted, found, strict=gradients):
        for x, y in zip(ours, theirs, strict=True):
            y = y.detach().transpose(1, 2).numpy().reshape(x.shape)
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dense_mask(contestants, case):
    check(contestants, "torch dense mask", case)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flex(contestants, case):
    check(contestants, "torch flex", case, gradients=False)


@pytest.mark.slow
def test_flex_is_compiled_after_its_backward_was_refused(contestants):
    from torch._dynamo.utils import counters

    if contestants.DEVICE == "cuda":
        pytest.skip("there is a backward on a GPU")
    one = contestants.torch_contestant("torch flex", CASES[1], 1, "float32")
    assert one.remark == "FlexAttention does not support backward on CPU"
    before = counters["frames"]["ok"]
    one.forward(*one.arrays)
    assert counters["frames"]["ok"] == before + 1


@pytest.mark.natten
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_natten(contestants, case):
    pytest.importorskip("natten.libnatten", reason="NATTEN 0.17.5 is not built here")
    check(contestants, "natten 0.17.5", case)

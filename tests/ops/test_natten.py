"""Against NATTEN 0.17.5's own kernels, gradients included; heads first, as it had them."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from natten_zoo import ops
from tests.ops.cases import on_each_tier

FOLDER = Path(__file__).parents[1] / "fixtures" / "ops"
NAMES = ("na1d_L13_k5_d1", "na2d_14x17_k7_d2", "na3d_8x9x7_k3_d231")


def heads_last(x):
    return mx.moveaxis(mx.array(x), 1, -2)


@on_each_tier(NAMES, quick=NAMES[1:2])
def test_outputs_logits_and_gradients(name, tier):
    data = np.load(FOLDER / f"{name}.npz")
    meta, rank = json.loads(str(data["meta"])), data["q"].ndim - 3
    scale = float(data["scale"])
    window = tuple(meta["kernel_size"]), tuple(meta["dilation"])
    na, qk = getattr(ops, f"na{rank}d"), getattr(ops, f"na{rank}d_qk")
    inputs = [*(heads_last(data[n]) for n in "qkv"), mx.array(data["rpb"])]

    def attend(q, k, v, rpb):
        return [na(q, k, v, window[0], 1, window[1], scale=scale, rpb=rpb)]

    with ops.use_backend(tier):
        (out,), grads = mx.vjp(attend, inputs, [heads_last(data["cotangent"])])
        logits = qk(*inputs[:2], *window, scale=scale, rpb=inputs[3])
    assert np.allclose(out, heads_last(data["out"]), atol=1e-5)
    assert np.allclose(logits[:1, ..., :1, :], heads_last(data["logits"]), atol=1e-4)
    for wanted, grad in zip(("dq", "dk", "dv"), grads, strict=False):
        assert np.allclose(grad, heads_last(data[wanted]), atol=1e-4), wanted
    assert np.allclose(grads[3], data["drpb"], atol=1e-3)

"""20,000 random problems, logits from 0 to the largest that a dtype can make among them.

Each tier is held against float64, forward and backward, within what the rounding of float32 may do
to each number (`tests/ops/bounds.py`). A problem is its number: `problem(4711)`.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.ops import dense, pure
from natten_zoo.ops.pure import tiling
from tests.ops.cases import expected_attention, tiers
from tests.ops.extremes import SHARES, Extreme, draw, worst

PROBLEMS, SHARDS, SAMPLE = 20_000, 40, 60


def problem(number: int) -> Extreme:
    rng = np.random.default_rng(number)
    return draw(str(rng.choice(list(SHARES), p=list(SHARES.values()))), rng)


def wrong(number: int, only: str | None = None) -> list[str]:
    """What is further from float64 than it may be, on any tier."""
    case = problem(number)
    found = []
    for tier in tiers(case) if only is None else [only]:
        for name, error in worst(case, tier).items():
            if not error <= 1:
                found.append(f"problem({number}), {tier}: {name} by {error:.3g} times")
    return found


@pytest.mark.parametrize("shard", [pytest.param(n, marks=pytest.mark.slow) for n in range(SHARDS)])
def test_every_problem(shard):
    bad = [text for n in range(shard, PROBLEMS, SHARDS) for text in wrong(n)]
    assert bad == [], f"{len(bad)} of {PROBLEMS // SHARDS}:\n" + "\n".join(bad[:20])


def test_a_sample():
    assert [text for n in range(PROBLEMS, PROBLEMS + SAMPLE) for text in wrong(n)] == []


def test_they_cover_the_range():
    cases = [problem(n) for n in range(500)]
    for field in (
        "kind",
        "dtype",
        "rank",
        "is_causal",
        "has_rpb",
        "hides",
        "view",
        "batch",
        "group",
    ):
        assert len({getattr(case, field) for case in cases}) >= 2, field
    plain = [c for c in cases if c.kind == "attention"]
    assert {1, 5, 64, 256} <= {c.head_dim for c in cases}
    assert any(c.value_dim > c.head_dim for c in plain)
    assert sum(c.hood.covers(c.spatial) and not c.has_rpb for c in plain) > 5  # MLX's attention
    for dtype, largest in (("float32", 1e20), ("float16", 1e7), ("bfloat16", 1e20)):
        of_dtype = [c for c in plain if c.dtype == dtype]
        sizes = [np.abs(c.expected["lse"].value).max() for c in of_dtype]
        assert min(sizes) < 3 and max(s for s in sizes if s < 5e28) > largest


def test_its_float64_is_that_of_the_definition():
    """Matrices of all keys here, a loop over each window there."""
    checked = 0
    for number in range(400):
        case = problem(number)
        if case.kind not in ("attention", "varlen") or case.hides or case.climb or case.lift:
            continue
        wanted = expected_attention(case)
        got = [case.expected[n].value for n in ("out", "lse", "d_query", "d_key", "d_value")]
        got += [case.expected["d_rpb"].value] if case.has_rpb else []
        for x, y in zip(got, wanted, strict=True):
            finite = np.isfinite(y)
            assert np.array_equal(x[~finite], y[~finite])
            size = np.abs(y[finite]).max(initial=1e-300)
            assert np.abs(x[finite] - y[finite]).max(initial=0) <= 1e-9 * size, (number, case)
        checked += 1
    assert checked > 100


def test_it_sees_a_thousandth_in_any_result():
    """Of usual logits in float32: the largest number of each result, off by a thousandth."""
    cases = [c for c in map(problem, range(600)) if c.dtype == "float32"]
    cases = [c for c in cases if c.queries * c.keys < 30 and not (c.lift or c.climb or c.hides)]
    seen = []
    for bounded in (b for case in cases for b in case.expected.values()):
        got = bounded.value.copy()
        place = np.unravel_index(np.argmax(np.where(np.isinf(got), 0, np.abs(got))), got.shape)
        if 1e-3 < abs(got[place]) < np.inf:
            got[place] *= 1.001
            seen.append(bounded.stored("float32").worst(got, "float32") > 1)
    assert len(seen) > 300 and sum(seen) / len(seen) > 0.95


def exp_of_a_rounded_sum(outputs, lse_tensors):
    """`merge_attentions` with weights that do not add up to 1 where the LSE is large."""
    lse = mx.logsumexp(mx.stack(lse_tensors), axis=0)
    weights = [mx.exp(x - lse)[..., None] for x in lse_tensors]
    total = sum(w * x.astype(mx.float32) for w, x in zip(weights, outputs, strict=True))
    return total.astype(outputs[0].dtype), lse


def a_sum_kept_in_one_number(*arguments):
    """`pure.forward` whose backward pass has the LSE alone, as one float32."""
    out, lse, stats = forward(*arguments)
    whole = stats.sum(axis=-1, keepdims=True)
    return out, lse, mx.concatenate([whole, mx.zeros_like(whole)], axis=-1)


forward = pure.forward
FAULTS = {
    "logits 2e-5 too large": (pure, "LOG2E", pure.LOG2E * (1 + 2e-5)),
    "a mask that large logits pass": (tiling, "MASKED", -1e8),
    "a sum lost beside the largest logit": (pure, "forward", a_sum_kept_in_one_number),
    "merged by a rounded sum": (dense, "merge_attentions", exp_of_a_rounded_sum),
    "exponentials off by 3e-5": (pure, "EXP2", (*pure.EXP2[:4], pure.EXP2[4] + 1e-4, 1.0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_can_fail(fault, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    tiling._tiling.cache_clear()
    try:
        assert any(wrong(number, "pure") for number in range(400))
    finally:
        monkeypatch.undo()
        tiling._tiling.cache_clear()

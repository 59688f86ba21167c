"""The tier of MLX operations: runs on every device.

Queries are taken in tiles of neighbors, a tile reads the union of its windows once and masks what
a query must not see: matrix products over a few more scores than the windows have, instead of a
copy of the keys and values per query.
"""

from __future__ import annotations

import mlx.core as mx

from ..exports import runs_on_cpu
from ..problem import Problem, inside_samples, pack
from ..tier import Support
from .schedule import Part, PartResults
from .tiles import Tiles, flat
from .tiling import MASKED

NAME = "pure"
SUPPORT = Support(
    features=frozenset(
        ("dilation", "stride", "window_stride", "is_causal", "has_rpb", "has_lengths", "finer")
    )
)

# Attention computes its scores in powers of 2.
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
# A bias is at least this, above the scores of keys that are not seen. The same in all tiers: it is
# the LSE of a row that a bias hides altogether.
LEAST_BIAS = -1e29
# 2^x on [-0.5, 0.5]: the smallest relative error that degree 5 and 2^0 = 1 allow.
EXP2 = (0.00132647273, 0.0096715127, 0.0555073374, 0.240222421, 0.693146978, 1.0)


def why_not(problem: Problem) -> str | None:
    """It runs everywhere."""
    return None


def why_dense(problem: Problem) -> str | None:
    """Where a window covers its map, MLX's own attention does the same at once."""
    return "every window is the whole map" if problem.neighborhood.covers(problem.spatial) else None


def differentiable(op: str, problem: Problem) -> None:
    """ops/autograd.py has the rules of this tier."""


def forward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> tuple[mx.array, mx.array, mx.array]:
    """`(out, lse, stats)`."""
    tiles = Tiles(problem, _base_2(rpb), lengths)
    query = problem.scale * LOG2E * _by_query(problem, query, lengths)
    key, value = (_by_key(problem, x, lengths) for x in (key, value))

    def attend(part: Part) -> PartResults:
        scores, _, _ = _scores(tiles, part, query, key)  # [h, t, tk, rows]
        top = scores.max(axis=-2, keepdims=True)  # [h, t, 1, rows]
        weights = _exp2(scores - top)
        total = weights.sum(axis=-2, keepdims=True)
        out = weights.mT @ tiles.keys(part, value) / total.mT
        return [out, mx.concatenate([top, mx.log2(total)], axis=-2).mT], [], []

    (out, stats), _, _ = tiles.map(attend)
    lse = LN2 * stats.sum(axis=-1)
    if lengths is not None:
        seen = _seen(problem, lengths)[..., None]
        out, lse = mx.where(seen[..., None], out, 0.0), mx.where(seen, lse, -mx.inf)
    return out.astype(problem.dtype), lse, stats


def backward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    out: mx.array,
    stats: mx.array,
    d_out: mx.array,
    d_lse: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """`(d_query, d_key, d_value, d_rpb)`, the weights recomputed from `stats`."""
    tiles = Tiles(problem, _base_2(rpb), lengths)
    delta = (out.astype(mx.float32) * d_out.astype(mx.float32)).sum(axis=-1)
    delta = delta if d_lse is None else delta - d_lse
    per_query = mx.concatenate([stats, delta[..., None]], axis=-1)
    if lengths is not None:
        per_query = mx.where(_seen(problem, lengths)[..., None, None], per_query, 0.0)
    per_query = flat(per_query)
    query = problem.scale * LOG2E * _by_query(problem, query, lengths)
    d_out = _by_query(problem, d_out, lengths)
    key, value = (_by_key(problem, x, lengths) for x in (key, value))

    def differentiate(part: Part) -> PartResults:
        scores, q, k = _scores(tiles, part, query, key)
        v, d_o = tiles.keys(part, value), tiles.queries(part, d_out)
        top, log_sum, delta = mx.split(tiles.queries(part, per_query).mT, 3, axis=-2)
        weights = _exp2(scores - top - log_sum)  # the scores as forward had them, bit by bit
        d_scores = weights * (v @ _transposed(d_o) - delta)
        d_q = problem.scale * (d_scores.mT @ k)
        return [d_q], [d_scores @ q, weights @ d_o], [] if rpb is None else [d_scores]

    grads = tiles.map(differentiate)
    (d_query,), (d_key, d_value), d_rpb = grads
    d_key = LN2 * d_key  # the queries were in powers of 2
    d_query, d_key, d_value = (x.astype(problem.dtype) for x in (d_query, d_key, d_value))
    return d_query, d_key, d_value, None if rpb is None else d_rpb[0].astype(rpb.dtype)


def backward_packed(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    out: mx.array,
    stats: mx.array,
    d_out: mx.array,
    d_lse: mx.array | None = None,
) -> tuple[mx.array, mx.array | None]:
    """`(d_qkv, d_rpb)`: the same, the first three in one array."""
    arrays = query, key, value, rpb, lengths, out, stats, d_out, d_lse
    *grads, d_rpb = backward(problem, *arrays)
    return pack(problem, *grads), d_rpb


def qk(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
) -> mx.array:
    """Logits `[B, *out, H, prod K]`, -inf in slots without a key."""
    tiles = Tiles(problem, rpb, lengths)
    query = problem.scale * _by_query(problem, query, lengths)
    key = _by_key(problem, key, lengths)

    def score(part: Part) -> PartResults:
        scores, _, _ = _scores(tiles, part, query, key)
        # A bias of -inf was made finite, to differ from what is not seen.
        scores = mx.where(scores < MASKED / 20, -mx.inf, scores)
        return [tiles.to_slots(part, scores, -mx.inf)], [], []

    (logits,), _, _ = tiles.map(score)
    return logits.astype(problem.dtype)


def qk_backward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    lengths: mx.array | None,
    d_logits: mx.array,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """`(d_query, d_key, d_rpb)`."""
    tiles = Tiles(problem, rpb, lengths)
    query = problem.scale * _by_query(problem, query, lengths)
    d_logits = _by_query(problem, d_logits, lengths)
    key = _by_key(problem, key, lengths)

    def differentiate(part: Part) -> PartResults:
        d_scores = tiles.from_slots(part, tiles.queries(part, d_logits))
        d_q = problem.scale * (d_scores.mT @ tiles.keys(part, key))
        d_k = d_scores @ tiles.queries(part, query)
        return [d_q], [d_k], [] if rpb is None else [d_scores]

    (d_query,), (d_key,), d_rpb = tiles.map(differentiate)
    d_query, d_key = d_query.astype(problem.dtype), d_key.astype(problem.dtype)
    return d_query, d_key, None if rpb is None else d_rpb[0].astype(rpb.dtype)


def av(problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None) -> mx.array:
    """`[B, *out, H, Dv]`; slots without a key are ignored."""
    tiles = Tiles(problem, None, lengths)
    attn, value = _by_query(problem, attn, lengths), _by_key(problem, value, lengths)

    def weigh(part: Part) -> PartResults:
        weights = tiles.from_slots(part, tiles.queries(part, attn))
        return [weights.mT @ tiles.keys(part, value)], [], []

    (out,), _, _ = tiles.map(weigh)
    return out.astype(problem.dtype)


def av_backward(
    problem: Problem, attn: mx.array, value: mx.array, lengths: mx.array | None, d_out: mx.array
) -> tuple[mx.array, mx.array]:
    """`(d_attn, d_value)`."""
    tiles = Tiles(problem, None, lengths)
    attn, d_out = _by_query(problem, attn, lengths), _by_query(problem, d_out, lengths)
    value = _by_key(problem, value, lengths)

    def differentiate(part: Part) -> PartResults:
        weights, d_o = (tiles.queries(part, x) for x in (attn, d_out))
        d_weights = tiles.keys(part, value) @ _transposed(d_o)
        d_v = tiles.from_slots(part, weights) @ d_o
        return [tiles.to_slots(part, d_weights, 0.0)], [d_v], []

    (d_attn,), (d_value,), _ = tiles.map(differentiate)
    return d_attn.astype(problem.dtype), d_value.astype(problem.dtype)


def _scores(
    tiles: Tiles, part: Part, query: mx.array, key: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Biased and masked `[h, t, tk, rows]`, and the queries and the keys they are of."""
    q, k = tiles.queries(part, query), tiles.keys(part, key)
    return k @ _transposed(q) + tiles.bias(part), q, k


def _transposed(x: mx.array) -> mx.array:
    """`x.mT`, moved in memory: `mx.contiguous`, which can't be exported, by way of a reshape."""
    return x.mT.flatten().reshape(*x.shape[:-2], x.shape[-1], x.shape[-2])


def _by_query(problem: Problem, x: mx.array, lengths: mx.array | None) -> mx.array:
    """Flat, with zeros outside the samples: there may be anything, even NaN."""
    if lengths is not None:
        x = mx.where(_seen(problem, lengths)[..., None, None], x, mx.zeros((), x.dtype))
    return flat(x)


def _by_key(problem: Problem, x: mx.array, lengths: mx.array | None) -> mx.array:
    """Flat, with zeros outside the samples."""
    if lengths is not None:
        inside = inside_samples([mx.arange(n) for n in problem.spatial], lengths)
        x = mx.where(inside[..., None, None], x, mx.zeros((), x.dtype))
    return flat(x)


def _seen(problem: Problem, lengths: mx.array) -> mx.array:
    """`[B, *out]`: whether a query lies inside its sample."""
    steps = zip(problem.out, problem.neighborhood.stride, strict=True)
    return inside_samples([mx.arange(n) * s for n, s in steps], lengths)


def _base_2(rpb: mx.array | None) -> mx.array | None:
    """A bias in powers of 2."""
    return None if rpb is None else LOG2E * mx.maximum(rpb.astype(mx.float32), LEAST_BIAS)


def _exp2(x: mx.array) -> mx.array:
    """`2^x` for `x <= 0`."""
    if not runs_on_cpu():
        return mx.exp(LN2 * x)
    # MLX's exponential takes 12 ns a number on a CPU, this a quarter: 2^n from the bits of n, times
    # a polynomial (relative error 2e-7) for the rest. Below 2^-100 it is exactly zero.
    x = mx.maximum(x, -100.0)
    shifted = x + 12582912.0  # 1.5 * 2^23: rounds, and leaves n in the low bits
    rest = x - (shifted - 12582912.0)
    power = EXP2[0] * rest + EXP2[1]
    for c in EXP2[2:]:
        power = power * rest + c
    bits = power.view(mx.int32) + (shifted.view(mx.int32) << 23)
    return bits.view(mx.float32) - 2.0**-100

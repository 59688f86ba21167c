"""Attention over all keys, and the merging of attention over disjoint sets of keys."""

from __future__ import annotations

import mlx.core as mx


def merge_attentions(
    outputs: list[mx.array], lse_tensors: list[mx.array]
) -> tuple[mx.array, mx.array]:
    r"""Attention over the union of disjoint key sets, from the attention over each.

    .. math::
        o = \sum_i e^{l_i - l} o_i, \qquad l = \log \sum_i e^{l_i}

    Differentiable in the outputs and the LSEs. A set that a query does not see has an LSE of
    ``-inf``; where all have, output and gradients are zero.

    Args:
        outputs: At least one array ``[..., heads, head_dim]``.
        lse_tensors: For each its LSE, natural logarithm, ``[..., heads]``.

    Returns:
        ``(output, lse)``: in the dtype of ``outputs[0]``, and in float32.

    Raises:
        ValueError: If numbers or shapes do not fit together.
    """
    if not outputs or len(outputs) != len(lse_tensors):
        raise ValueError(
            "[merge_attentions] 'outputs' and 'lse_tensors' must be equally many, at least one, "
            f"but got {len(outputs)} and {len(lse_tensors)}."
        )
    for out, lse in zip(outputs, lse_tensors, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                "[merge_attentions] 'outputs' must have one shape and each LSE that shape without "
                f"head_dim but got {out.shape} and {lse.shape} beside {outputs[0].shape}."
            )
    # Finite stand-ins for -inf: a difference of two infinities is NaN, also in the gradient.
    stacked = mx.maximum(mx.stack(lse_tensors).astype(mx.float32), -1e30)
    lse = mx.logsumexp(stacked, axis=0)
    seen = lse > -1e29
    weights = mx.where(seen, mx.exp(stacked - lse), 0.0)
    total = (weights[..., None] * mx.stack(outputs).astype(mx.float32)).sum(axis=0)
    return total.astype(outputs[0].dtype), mx.where(seen, lse, -mx.inf)


def full_attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float
) -> tuple[mx.array, mx.array]:
    """Every query sees every key: output ``[B, Q, H, Dv]`` and LSE ``[B, Q, H]``.

    ``query`` is ``[B, Q, H, D]``, ``key`` ``[B, K, Hkv, D]``, ``value`` ``[B, K, Hkv, Dv]``. Being
    lazy, an LSE that nobody uses costs nothing.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, H, N, D]
    out = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
    grouped = mx.unflatten(query, 1, (key.shape[1], -1))  # [B, Hkv, H / Hkv, Q, D]
    logits = scale * (grouped.astype(mx.float32) @ key[:, :, None].astype(mx.float32).mT)
    lse = mx.logsumexp(logits, axis=-1).flatten(1, 2)
    return out.transpose(0, 2, 1, 3), lse.transpose(0, 2, 1)

"""Additional keys: every query sees them, and they lie nowhere on the map.

No tier knows of them. They are attended to apart, and the results merged.
"""

from __future__ import annotations

import mlx.core as mx

from . import dense
from .problem import Problem, check_floats
from .tier import Support

# What problems may ask for that have additional keys, too.
SUPPORT = Support(
    features=frozenset(("dilation", "stride", "window_stride", "is_causal", "has_rpb", "finer"))
)


def check_additional(
    op: str, problem: Problem, keys: mx.array | None, values: mx.array | None
) -> None:
    """Raises unless additional keys and values are both absent or both fit the problem."""
    if keys is None and values is None:
        return
    if keys is None or values is None:
        raise ValueError(
            f"[{op}] 'additional_keys' and 'additional_values' must be given together."
        )
    reason = SUPPORT.why_not(problem)
    if reason:
        raise ValueError(f"[{op}] 'additional_keys' must be None for this problem: {reason}.")
    check_floats(op, additional_keys=keys, additional_values=values)
    heads = problem.kv_heads
    expected = {"additional_keys": problem.head_dim, "additional_values": problem.value_dim}
    for (name, dim), x in zip(expected.items(), (keys, values), strict=True):
        fits = x.ndim == 4 and x.shape[0] == problem.batch and x.shape[2:] == (heads, dim)
        if not fits or x.shape[1] != keys.shape[1] or x.dtype != problem.dtype:
            raise ValueError(
                f"[{op}] '{name}' must have shape [{problem.batch}, tokens, {heads}, {dim}] and "
                f"dtype {problem.dtype} but got {x.shape} and {x.dtype}."
            )


def attend_also(
    query: mx.array, keys: mx.array, values: mx.array, scale: float, out: mx.array, lse: mx.array
) -> tuple[mx.array, mx.array]:
    """The output and the LSE of windows, and what they are with additional keys."""
    extra, extra_lse = dense.full_attention(query.flatten(1, -3), keys, values, scale)
    extra, extra_lse = extra.reshape(out.shape), extra_lse.reshape(lse.shape)
    return dense.merge_attentions([out, extra], [lse, extra_lse])

"""Layer norm, which a CPU computes faster than MLX does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..ops import native
from .compiled import runs_compiled


def layer_norm(
    x: mx.array, weight: mx.array | None = None, bias: mx.array | None = None, eps: float = 1e-5
) -> mx.array:
    r"""Layer norm of the last axis (https://arxiv.org/abs/1607.06450).

    $$
    y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \, \gamma + \beta
    $$

    `mx.fast.layer_norm`, but that the compiled tier, where it may compute, passes over the array
    once on a CPU, forward and backward, in vectors and threads (MLX: some ten operations in one).

    Args:
        x: `[..., channels]`, of any floating dtype.
        weight: Gains $\gamma$, `[channels]`. Default: 1.
        bias: Offsets $\beta$, `[channels]`. Default: 0.
        eps: Added to the variance.
    """
    shape = x.shape[-1:]
    given = [p for p in (weight, bias) if p is not None]
    fits = x.ndim > 0 and all(p.shape == shape for p in given)
    if not fits or not runs_compiled(x, *given):
        return mx.fast.layer_norm(x, weight, bias, eps)
    weight = mx.ones(shape, x.dtype) if weight is None else weight
    bias = mx.zeros(shape, x.dtype) if bias is None else bias
    return native.layer_norm(x, weight, bias, eps)


class LayerNorm(nn.LayerNorm):
    """`mlx.nn.LayerNorm`, by [`layer_norm`][]."""

    def __call__(self, x: mx.array) -> mx.array:
        return layer_norm(x, self.get("weight"), self.get("bias"), self.eps)

    def macs(self, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call, as fvcore counts them."""
        return 5 * output.size

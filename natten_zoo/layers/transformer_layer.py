"""The pre-norm layer that all models of the zoo stack."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .drop_path import DropPath
from .mlp import MLP
from .norm import LayerNorm

EPS = 1e-5


class TransformerLayer(nn.Module):
    r"""Attention and feed-forward, each normed before and added to its input.

    $$
    \begin{aligned}
    x &= x + \gamma_1 \, \mathrm{attn}(\mathrm{norm}_1(x)) \\
    y &= x + \gamma_2 \, \mathrm{mlp}(\mathrm{norm}_2(x))
    \end{aligned}
    $$

    Args:
        attn: The attention layer, `[batch, *spatial, dim]` to the same shape.
        dim: Channels.
        mlp_ratio: Width of the feed-forward part relative to `dim`.
        drop: Dropout rate of the feed-forward part.
        drop_path: Rate of stochastic depth, for both branches.
        layer_scale: Initial value of the gains $\gamma$; None means no gains.

    Shape:
        - Input and output: `[batch, *spatial, dim]`.
    """

    # Residual branches, each of which calls `drop_path` once: what computing it twice must know.
    BRANCHES = 2

    def __init__(
        self,
        attn: nn.Module,
        dim: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        if layer_scale is not None:
            self.gamma1 = mx.full((dim,), layer_scale)
            self.gamma2 = mx.full((dim,), layer_scale)

    def __call__(self, x: mx.array) -> mx.array:
        attended = self.attn(self.norm1(x))
        if "gamma1" in self:
            attended = self.gamma1 * attended
        x = x + self.drop_path(attended)
        fed = self.mlp(self.norm2(x))
        if "gamma2" in self:
            fed = self.gamma2 * fed
        return x + self.drop_path(fed)

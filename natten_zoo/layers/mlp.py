"""The feed-forward half of a transformer layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from .activation import gelu


class MLP(nn.Module):
    """Linear, GELU (the exact one, by erf), linear.

    Args:
        dim: Channels of the input.
        hidden_dim: Channels in between.
        drop: Dropout rate after each linear layer.
        out_dim: Channels of the output. Default: those of the input.

    Shape:
        - Input: `[..., dim]`.
        - Output: `[..., out_dim]`.
    """

    def __init__(
        self, dim: int, hidden_dim: int, drop: float = 0.0, *, out_dim: int | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim or dim)
        self.drop = nn.Dropout(drop)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.drop(gelu(self.fc1(x)))
        return self.drop(self.fc2(x))


class SwiGLU(nn.Module):
    r"""Gated linear units with SiLU: $W_3(\mathrm{silu}(W_1 x) \cdot W_2 x)$, without biases.

    Source: Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202.

    Args:
        dim: Channels of the input and the output.
        hidden_dim: Channels in between.

    Shape:
        - Input: `[..., dim]`.
        - Output: `[..., dim]`.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(dim, hidden_dim, bias=False)
        self.w_up = nn.Linear(dim, hidden_dim, bias=False)
        self.w_down = nn.Linear(hidden_dim, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w_down(nn.silu(self.w_gate(x)) * self.w_up(x))


class ReLUMLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        dims: Channels of the input, of what is in between, of the output.

    Shape:
        - Input: `[..., dims[0]]`.
        - Output: `[..., dims[-1]]`.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.layers = [nn.Linear(*sizes) for sizes in pairwise(dims)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)

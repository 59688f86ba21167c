"""The attention of DiNAT as Hugging Face and all-in-one spell it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..ops.neighborhood import IntOrInts
from ..ops.varlen import Sizes
from .neighborhood_attention import NeighborhoodAttention


class DinatAttention(NeighborhoodAttention):
    """Dilated neighborhood attention with three input projections and a relative positional bias.

    The same function as [`NeighborhoodAttention`][] with `rel_pos_bias=True`: logits, bias,
    softmax and sum are one fused operator. It differs in what its parameters are called:
    `query`, `key`, `value` and `rpb` as in transformers'
    `DinatNeighborhoodAttention`, and `proj` for its output layer. Use the subclasses
    [`DinatAttention1D`][], [`DinatAttention2D`][] and [`DinatAttention3D`][].
    Source: Hassani and Shi, Dilated Neighborhood Attention Transformer,
    https://arxiv.org/abs/2209.15001.

    Args:
        embed_dim: Channels of the input and the output.
        num_heads: Attention heads; must divide `embed_dim`.
        kernel_size: Window size, one number or one per axis.
        dilation: Step between the tokens of a window, one number or one per axis.
        qkv_bias: Whether the input projections have a bias.
        pad_small_inputs: Zero-pad inputs smaller than `kernel_size * dilation`, as DiNAT does.
        options: Other arguments of [`NeighborhoodAttention`][].

    Shape:
        - Input and output: `[batch, *spatial, embed_dim]`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: IntOrInts,
        dilation: IntOrInts = 1,
        qkv_bias: bool = True,
        *,
        pad_small_inputs: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            qkv_bias=qkv_bias,
            rel_pos_bias=True,
            pad_small_inputs=pad_small_inputs,
            **options,
        )

    def _add_qkv(self, embed_dim: int, bias: bool) -> None:
        kv_dim = self.num_kv_heads * self.head_dim
        self.query = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.key = nn.Linear(embed_dim, kv_dim, bias=bias)
        self.value = nn.Linear(embed_dim, kv_dim, bias=bias)

    def _attended(self, x: mx.array, lengths: Sizes | None) -> mx.array:
        query, key, value = self.project_qkv(x)
        return self.attend(query, key, value, lengths)

    def project_packed(self, x: mx.array) -> mx.array:
        """As `NeighborhoodAttention` has it, joined by a copy: here are three projections."""
        return mx.concatenate(self.project_qkv(x), axis=-2)

    def project_qkv(self, x: mx.array) -> list[mx.array]:
        layers = self.query, self.key, self.value
        return [mx.unflatten(layer(x), -1, (-1, self.head_dim)) for layer in layers]


class DinatAttention1D(DinatAttention):
    """[`DinatAttention`][] over sequences `[batch, length, channels]`."""

    rank = 1


class DinatAttention2D(DinatAttention):
    """[`DinatAttention`][] over feature maps `[batch, height, width, channels]`."""

    rank = 2


class DinatAttention3D(DinatAttention):
    """[`DinatAttention`][] over volumes `[batch, depth, height, width, channels]`."""

    rank = 3

"""Activation functions that a CPU computes faster than MLX does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..ops import native
from .compiled import runs_compiled


def gelu(x: mx.array) -> mx.array:
    r"""GELU by the error function, $x \, \Phi(x)$ (https://arxiv.org/abs/1606.08415).

    `mlx.nn.gelu`, but that the compiled tier, where it may compute, has vectors and threads for it
    on a CPU (MLX's error function there is one number at a time): within 1e-6, differentiable.

    Args:
        x: Of any shape and floating dtype.
    """
    return native.gelu(x) if runs_compiled(x) else nn.gelu(x)

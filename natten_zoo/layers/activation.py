"""Activation functions that a CPU computes faster than MLX does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..ops import native
from ..ops.backend import get_backend
from ..ops.exports import export_target
from ..ops.problem import DTYPES


def gelu(x: mx.array) -> mx.array:
    r"""GELU by the error function, $x \, \Phi(x)$ (https://arxiv.org/abs/1606.08415).

    `mlx.nn.gelu`, but that the compiled tier, where it may compute, has vectors and threads for it
    on a CPU (MLX's error function there is one number at a time): within 1e-6, differentiable.

    Args:
        x: Of any shape and floating dtype.
    """
    compiled = get_backend() in ("auto", native.NAME) and native.is_on_cpu()
    if compiled and x.dtype in DTYPES and not export_target():
        return native.gelu(x)
    return nn.gelu(x)

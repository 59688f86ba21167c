"""What parts of a model the compiled tier computes beside attention."""

from __future__ import annotations

import mlx.core as mx

from ..ops import native
from ..ops.backend import get_backend
from ..ops.exports import export_target
from ..ops.problem import DTYPES


def runs_compiled(x: mx.array, *others: mx.array) -> bool:
    """Whether it may compute something of these arrays: on a CPU, all of one dtype that it has."""
    may = get_backend() in ("auto", native.NAME) and native.is_on_cpu() and not export_target()
    return may and x.dtype in DTYPES and all(y.dtype == x.dtype for y in others)

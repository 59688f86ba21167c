"""What the extension offers: the face of module.cpp, which type checkers cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Protocol

import mlx.core as mx


class Operation(Enum):
    """The names of a tier's functions."""

    FORWARD = 0
    BACKWARD = 1
    QK = 2
    QK_BACKWARD = 3
    AV = 4
    AV_BACKWARD = 5
    FORWARD_PACKED = 6
    BACKWARD_PACKED = 7


class Call(Protocol):
    """A problem, as the primitives take it."""


class BuiltKernel(Protocol):
    """A kernel of metal/ as MLX builds it."""


class Launch(Protocol):
    """One launch of a program."""


class Launches(Protocol):
    """An operation as launches."""

    def __call__(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Adds them to the graph."""


class Extension(Protocol):
    """The module."""

    MLX_VERSION: str
    FACE: str
    Op: type[Operation]

    def __hash__(self) -> int:
        """Programs are cached by it."""

    def make_call(
        self,
        *,
        spatial: Sequence[int],
        kernel_size: Sequence[int],
        dilation: Sequence[int],
        stride: Sequence[int],
        window_stride: Sequence[int],
        is_causal: Sequence[bool],
        finer: Sequence[int],
        batch: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        scale: float,
    ) -> Call:
        """A problem without its dtype, which the arrays have."""

    def apply(
        self,
        op: Operation,
        call: Call,
        inputs: Sequence[mx.array],
        rpb: mx.array | None,
        lengths: mx.array | None,
    ) -> list[mx.array]:
        """The results of an operation, computed on the CPU when they are evaluated."""

    def gelu(self, x: mx.array) -> mx.array:
        """GELU by the error function, computed on the CPU when it is evaluated."""

    def layer_norm(self, x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
        """Layer norm of the last axis, computed on the CPU when it is evaluated."""

    def Kernel(  # noqa: N802
        self,
        *,
        platform: str | None,
        name: str,
        input_names: list[str],
        output_names: list[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
        shared_memory: int = 0,
    ) -> BuiltKernel:
        """A kernel for one of MLX's back-ends."""

    def Step(  # noqa: N802
        self,
        *,
        kernel: BuiltKernel,
        template: Iterable[tuple[str, mx.Dtype | int | bool]],
        groups: int,
        threads: int,
        inputs: list[int],
        outputs: list[int],
        contiguous: list[bool],
        shapes: Sequence[Sequence[int]],
        dtypes: list[mx.Dtype],
    ) -> Launch:
        """A launch of so many threadgroups; inputs and outputs are places among the values."""

    def Program(  # noqa: N802
        self,
        *,
        dtypes: list[mx.Dtype],
        constants: list[mx.array],
        steps: list[Launch],
        results: list[int],
        lengths: int,
        columns: mx.array | None,
        rpb: int,
        shares: int,
    ) -> Launches:
        """Launches over values with places: those given, constants, and what the steps add."""

    def fma_peak(self) -> float:
        """float32 operations per second that the pool's threads reach on registers alone."""

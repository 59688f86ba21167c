"""Building kernels ahead of the first call that needs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .gpu.kernels import pipelines, watch


@dataclass(frozen=True)
class Preparation:
    """What [`prepare`][natten_zoo.ops.prepare] has built.

    Attributes:
        built: Kernels that were built; those that were there before are not counted.
        seconds: That it took.
        failures: Why those that this device cannot build failed. What would have used them uses
            another core or another tier; see [`explain`][natten_zoo.ops.explain].
    """

    built: int
    seconds: float
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.built and not self.failures:
            return "nothing to build"
        kernels = "1 kernel" if self.built == 1 else f"{self.built} kernels"
        return "\n  ".join([f"{kernels} built in {self.seconds:.1f} s", *self.failures])


def prepare(
    function: Callable[..., Any], *args: Any, gradients: bool = False, **kwargs: Any
) -> Preparation:
    """Builds the kernels of `function(*args, **kwargs)`, so that its first call doesn't wait.

    On a GPU the first call of an operator builds its kernels, which takes a moment for each. A
    kernel is built for a dtype, the number of axes, head_dims and the kind of problem, not for
    sizes of batches and maps: what is prepared with one size is mostly prepared for all. (With far
    more work another core may multiply, which is another kernel.) Elsewhere there is nothing to
    build.

    `function` is called once; MLX being lazy, nothing of it is computed.

    Args:
        function: An operator, a layer or a whole model.
        *args: What it will be called with, or arrays of the same shapes and dtypes.
        gradients: Whether to build what differentiating it needs, too: in its trainable parameters
            if it is a module, and in the floating-point arrays among the arguments.
        **kwargs: As `args`.

    Raises:
        ValueError: If there is nothing to differentiate in.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x = mx.zeros((1, 14, 14, 2, 32))
        >>> with ops.use_backend("pure"):
        ...     print(ops.prepare(ops.na2d, x, x, x, kernel_size=7, gradients=True))
        nothing to build
    """
    start, known = time.perf_counter(), pipelines()
    with watch() as proofs:
        if gradients:
            _differentiate(function, args, kwargs)
        else:
            function(*args, **kwargs)
    built = {build.pipeline for build, failure in proofs if failure is None} - known
    failures = dict.fromkeys(failure for _, failure in proofs if failure is not None)
    return Preparation(len(built), time.perf_counter() - start, tuple(failures))


def _differentiate(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Adds a function's gradients to MLX's graph, where nobody asks for them."""
    module = function if isinstance(function, nn.Module) else nn.Module()
    parameters = module.trainable_parameters()
    variable = _floating((args, kwargs))
    if not variable and not tree_flatten(parameters):
        raise ValueError("[prepare] 'gradients' must be False: there is nothing to differentiate.")

    def total(parameters: Any, variable: list[mx.array]) -> mx.array:
        module.update(parameters)
        left = iter(variable)
        given = tree_map(
            lambda x: next(left) if _is_floating(x) else x, (args, kwargs), is_leaf=_is_module
        )
        outputs = _floating(function(*given[0], **given[1]))
        return sum((y.astype(mx.float32).sum() for y in outputs), mx.array(0.0))

    try:
        mx.grad(total, argnums=(0, 1))(parameters, variable)
    finally:
        module.update(parameters)


def _floating(tree: Any) -> list[mx.array]:
    """The floating-point arrays among arguments or results."""
    leaves: list[mx.array] = []
    tree_map(lambda x: leaves.append(x) if _is_floating(x) else None, tree, is_leaf=_is_module)
    return leaves


def _is_floating(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)


def _is_module(x: Any) -> bool:
    return isinstance(x, nn.Module)  # which is a dict, too

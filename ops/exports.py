"""Where operators are recorded to run elsewhere: what `mx.export_function` can write to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import mlx.core as mx

TARGETS = ("cpu", "metal")

_target: ContextVar[str | None] = ContextVar("natten_zoo_exporting", default=None)


@contextlib.contextmanager
def exporting(target: str = "cpu") -> Iterator[None]:
    """Has operators record what `mx.export_function` can write, in a `with` block.

    MLX writes its own operations and custom kernels, but no custom functions, and those carry the
    gradients. Whether an operator is being differentiated or exported it can't see, and a model in
    evaluation mode may well be differentiated: hence this block, within which there are no rules
    for gradients, the compiled tier is left out, and no kernel is tried before it is recorded.
    `mx.compile` is off, in all threads.
    Nothing else differs: the tiles, the kernels and their launches are the same, and so are the
    bits.

    Args:
        target: Where the function is going to run. `"cpu"`: in the pure tier. `"metal"`: in
            the Metal kernels, which need no GPU to be recorded, and in the pure tier where they do
            not support a problem. Without a GPU, operators can then be called by
            `mx.export_function` only.

    Raises:
        ValueError: If the target is another.
        RuntimeError: If it is `"metal"` and this MLX is for CUDA.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo import ops
        >>> x, names = mx.zeros((1, 14, 14, 2, 32)), []
        >>> with ops.exporting("metal"):
        ...     note = lambda entry: names.append(entry.get("name"))
        ...     mx.export_function(note, lambda x: ops.na2d(x, x, x, kernel_size=7), x)
        >>> "CustomKernel" in names
        True
    """
    if target not in TARGETS:
        raise ValueError(f"[exporting] 'target' must be 'cpu' or 'metal' but got {target!r}.")
    if target == "metal" and mx.cuda.is_available():
        raise RuntimeError(
            "[exporting] 'target' must be 'cpu' here: MLX for CUDA has no Metal text."
        )
    token = _target.set(target)
    try:
        with mx.stream(mx.cpu) if target == "cpu" else contextlib.nullcontext(), _uncompiled():
            yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Switches `mx.compile` off: activations are compiled, and of constants can't be written."""
    traced: list[mx.array] = []

    def note(x: mx.array) -> mx.array:
        traced.append(x)
        return x

    probe = mx.compile(note)
    for _ in range(2):
        probe(mx.array(0))
    if len(traced) > 1:  # it is off already, and stays so
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def export_target() -> str | None:
    """Where the function that is being exported is going to run; None if none is."""
    return _target.get()


def runs_on_cpu() -> bool:
    """Whether what is recorded now is going to run on a CPU."""
    target = export_target()
    return target == "cpu" if target else mx.default_device() == mx.cpu

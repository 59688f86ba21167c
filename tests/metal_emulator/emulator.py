"""Runs custom Metal kernels on the CPU, under the arguments of `mx.fast.metal_kernel`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from . import build, runtime
from .check import check
from .frontend import Argument, Kernel, Parameter, as_template, dtype_name
from .launches import Launch, Options, Report, add, current_options, options
from .runtime import Memory

THREADGROUP_MEMORY = 32 << 10
LARGEST_THREADGROUP = 1024
ALIGNMENT = 16  # of the widest type


class KernelFault(Exception):
    """A kernel did something that is undefined on a GPU; the message holds the reports."""


class StrictError(Exception):
    """A kernel would not compile on a Mac; the message holds the errors."""


@contextlib.contextmanager
def install(**changes: Any) -> Iterator[None]:
    """Lets MLX seem to have a GPU whose custom kernels run here, under changed `Options`.

    `mx.fast.metal_kernel` is the emulator, `mx.metal.is_available` says yes, and the default
    device reads as the GPU. Everything but custom kernels still runs on the CPU.
    """
    with (
        options(**changes),
        mock.patch.object(mx.fast, "metal_kernel", metal_kernel),
        mock.patch.object(mx.metal, "is_available", lambda: True),
        mock.patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)),
    ):
        yield


class metal_kernel:
    """A custom kernel; see `mx.fast.metal_kernel` for the arguments.

    Arrays may be MLX's or NumPy's; outputs are of the kind of the first input.
    """

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.input_names = list(input_names)
        self.output_names = list(output_names)
        self.source = source
        self.header = header
        self.ensure_row_contiguous = ensure_row_contiguous
        self.atomic_outputs = atomic_outputs
        self.fast_math = (compile_options or {}).get("math_mode", "safe") == "fast"
        self._libraries: dict[tuple[Kernel, str, bool], Path] = {}
        self._strict: set[Kernel] = set()

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[Any],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[Any]:
        self._validate(inputs, output_shapes, output_dtypes, grid, threadgroup)
        started = time.perf_counter()
        arrays = [_Input.of(x) for x in inputs]
        kernel = self.instance(
            [(a.dtype, a.data.shape) for a in arrays],
            list(zip(map(dtype_name, output_dtypes), output_shapes, strict=True)),
            template,
        )
        settings = current_options()
        self._refuse(settings, int(np.prod(np.minimum(threadgroup, grid))))
        if verbose:
            print(kernel.text(entry_point=False))
        library = self._library(kernel, settings)
        built = time.perf_counter()
        data = dict(zip(self.input_names, arrays, strict=True))
        outcome = runtime.run(
            library,
            [self._memory(p, kernel, data, init_value) for p in kernel.parameters()],
            grid,
            threadgroup,
            checked=settings.build != "fast",
            order=settings.order,
            seed=settings.seed,
            threadgroup_limit=THREADGROUP_MEMORY,
            reconverges=settings.reconverges,
            tensor_layout=settings.tensor_layout,
        )
        if outcome.counts.threadgroup_read_bytes > settings.patience:
            raise RuntimeError(
                "[METAL] Command buffer execution failed: Impacting Interactivity "
                "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
            )
        launch = Launch(
            name=self.name,
            grid=tuple(grid),
            threadgroup=tuple(threadgroup),
            counts=outcome.counts,
            threadgroup_bytes=outcome.threadgroup_bytes,
            copied_bytes=self._copied_bytes(arrays),
            reports=(*outcome.reports, *_uninitialised(kernel, outcome)),
            build_seconds=built - started,
            run_seconds=outcome.seconds,
        )
        add(launch)
        if launch.reports and settings.raise_faults:
            raise KernelFault(f"{self.name}:\n  " + "\n  ".join(map(str, launch.reports)))
        as_mlx = any(isinstance(x, mx.array) for x in inputs)
        return [
            _to_mlx(out, a.dtype) if as_mlx else out
            for out, a in zip(outcome.outputs, kernel.outputs, strict=True)
        ]

    def instance(
        self,
        inputs: Sequence[tuple[str, Sequence[int]]],
        outputs: Sequence[tuple[str, Sequence[int]]],
        template: Sequence[tuple[str, Any]] | None = None,
    ) -> Kernel:
        """The instantiation for arrays of some (dtype, shape) and template values."""

        def arguments(names: list[str], arrays: Sequence[tuple[str, Sequence[int]]]) -> Any:
            pairs = zip(names, arrays, strict=True)
            return tuple(Argument(n, dtype_name(d), tuple(shape)) for n, (d, shape) in pairs)

        return Kernel(
            name=self.name,
            source=self.source,
            header=self.header,
            inputs=arguments(self.input_names, inputs),
            outputs=arguments(self.output_names, outputs),
            template=as_template(template),
            atomic_outputs=self.atomic_outputs,
        )

    def _validate(
        self,
        inputs: Sequence[Any],
        output_shapes: Sequence[Any],
        output_dtypes: Sequence[Any],
        grid: Sequence[int],
        threadgroup: Sequence[int],
    ) -> None:
        if len(inputs) != len(self.input_names):
            raise ValueError(
                f"[{self.name}] 'inputs' must be {self.input_names} but got {len(inputs)} arrays"
            )
        for what, given in (("output_shapes", output_shapes), ("output_dtypes", output_dtypes)):
            if len(given) != len(self.output_names):
                raise ValueError(
                    f"[{self.name}] '{what}' must have one item for each of {self.output_names} "
                    f"but got {len(given)}"
                )
        for what, given in (("grid", grid), ("threadgroup", threadgroup)):
            if len(given) != 3 or min(given) < 1:
                raise ValueError(
                    f"[{self.name}] '{what}' must be three positive integers but got {given}"
                )
        if np.prod(np.minimum(threadgroup, grid)) > LARGEST_THREADGROUP:
            raise ValueError(
                f"[{self.name}] 'threadgroup' must have at most {LARGEST_THREADGROUP} threads "
                f"but got {tuple(threadgroup)}"
            )

    def _refuse(self, settings: Options, threads: int) -> None:
        """Fails as MLX does on a device that cannot build a kernel, or not for so many threads."""
        bounded = "max_total_threads_per_threadgroup" in self.header
        lacks = "<MetalPerformancePrimitives/" in self.header and not settings.has_tensors
        lacks = lacks or (bounded and not settings.takes_bounds)
        if lacks or re.search(settings.refuses, self.name):
            raise RuntimeError("[metal::Device] Unable to build metal library from source")
        if threads > settings.most_threads and not bounded:
            raise ValueError(
                f"Thread group size ({threads}) is greater than  the maximum allowed threads per "
                f"threadgroup ({settings.most_threads})."
            )

    def _copied_bytes(self, arrays: list[_Input]) -> int:
        if not self.ensure_row_contiguous:
            return 0
        return 2 * sum(a.data.nbytes for a in arrays if not a.data.flags.c_contiguous)

    def _library(self, kernel: Kernel, settings: Options) -> Path:
        fast_math = self.fast_math if settings.fast_math is None else settings.fast_math
        key = (kernel, settings.build, fast_math)
        with ThreadPoolExecutor(1) as beside:  # clang takes as long for one as for the other
            strict = None
            if settings.strict and kernel not in self._strict:
                strict = beside.submit(_require_strict, kernel)
            try:
                if key not in self._libraries:
                    text = kernel.text(entry_point=True)
                    self._libraries[key] = build.build_kernel(
                        text, settings.build, fast_math, kernel.metal_version
                    )
            finally:
                if strict:
                    strict.result()
                    self._strict.add(kernel)
        return self._libraries[key]

    def _memory(
        self, p: Parameter, kernel: Kernel, data: dict[str, _Input], init_value: float | None
    ) -> Memory:
        if p.kind == "output":
            a = next(a for a in kernel.outputs if a.name == p.array)
            start = 0.0 if init_value is None else init_value
            return Memory(p.name, _filled(a, start), True, init_value is not None)
        array, shift = data[p.array].data, data[p.array].shift
        if self.ensure_row_contiguous and not array.flags.c_contiguous:
            array, shift = np.ascontiguousarray(array), 0
        if p.kind == "shape":
            return Memory(p.name, np.array(array.shape, np.int32))
        if p.kind == "strides":
            return Memory(p.name, np.array(array.strides, np.int64) // array.itemsize)
        if p.kind == "ndim":
            return Memory(p.name, np.array(array.ndim, np.int32))
        storage, start = _storage(array)
        return Memory(p.name, storage, shift=(shift - start) % ALIGNMENT, start=start)


@dataclass(frozen=True)
class _Input:
    """An input as NumPy sees it (bfloat16 as uint16), without a copy."""

    data: np.ndarray
    dtype: str
    shift: int  # see Memory

    @classmethod
    def of(cls, x: Any) -> _Input:
        if isinstance(x, np.ndarray):
            return cls(x, dtype_name(x.dtype), x.ctypes.data % ALIGNMENT)
        x = x if isinstance(x, mx.array) else mx.array(x)
        data = _view(x)
        shift = (data.ctypes.data - _view(mx.array([x.dtype.size])).ctypes.data) % ALIGNMENT
        return cls(data, dtype_name(x.dtype), shift)


def _view(x: mx.array) -> np.ndarray:
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)


def _uninitialised(kernel: Kernel, outcome: runtime.Outcome) -> Iterator[Report]:
    """Looks for the pattern that variables start with, a NaN of ones, in what was written."""
    if outcome.aborted:
        return
    unwritten = {r.place for r in outcome.reports if r.kind == "unwritten-output"}
    for a, data in zip(kernel.outputs, outcome.outputs, strict=True):
        if "float" in a.dtype and a.name not in unwritten:
            pattern = np.frombuffer(b"\xff" * data.itemsize, f"u{data.itemsize}")[0]
            count = int((data.view(pattern.dtype) == pattern).sum())
            if count:
                message = f"{count} elements hold the value of a variable that was never set"
                yield Report("uninitialised-value", message, a.name, count)


def _require_strict(kernel: Kernel) -> None:
    """Runs the strict check, unless an earlier process found this very text good."""
    mark = build.toolchain() / "strict" / build.digest(kernel.text(entry_point=False))
    if mark.exists():
        return
    errors = check(kernel).errors
    if errors:
        raise StrictError(f"{kernel.name}:\n  " + "\n  ".join(map(str, errors)))
    mark.parent.mkdir(exist_ok=True)
    mark.touch()


def _to_mlx(x: np.ndarray, dtype: str) -> mx.array:
    return mx.array(x).view(mx.bfloat16) if dtype == "bfloat16" else mx.array(x)


def _filled(a: Argument, value: float) -> np.ndarray:
    if a.dtype == "bfloat16":
        return np.array(mx.full(a.shape, value, mx.bfloat16).view(mx.uint16))
    return np.full(a.shape, value, a.dtype)


def _storage(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The elements that an array spans in memory, and at which byte of them it begins."""
    if array.flags.c_contiguous or not array.size:
        return array, 0
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    span = 1 + sum(map(abs, reach)) // array.itemsize
    lowest = array[tuple(slice(-1, None) if step < 0 else slice(1) for step in array.strides)]
    flat = np.lib.stride_tricks.as_strided(lowest, (span,), (array.itemsize,))
    return flat.copy(), -sum(step for step in reach if step < 0)

"""From a custom kernel's parts to a translation unit: MLX's signature, the body, an entry point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .rewrites import expand_storage, rewrite

# Inputs of fewer elements than this lie in the constant address space
# (mlx/backend/common/metal_kernel.cpp).
SMALLEST_DEVICE_INPUT = 8

# Metal's attributes in the order MLX declares them: type, and value in the runtime's Coordinates.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": ("uint", "at->simdgroups * 8"),
    "dispatch_simdgroups_per_threadgroup": ("uint", "at->simdgroups"),
    "dispatch_threads_per_threadgroup": ("uint3", "__msl_uint3(at->dispatched_group_size)"),
    "grid_origin": ("uint3", "(uint3)0u"),
    "grid_size": ("uint3", "__msl_uint3(at->grid_size)"),
    "quadgroup_index_in_threadgroup": ("uint", "at->index / 4"),
    "quadgroups_per_threadgroup": ("uint", "at->simdgroups * 8"),
    "simdgroup_index_in_threadgroup": ("uint", "at->simdgroup"),
    "simdgroups_per_threadgroup": ("uint", "at->simdgroups"),
    "thread_execution_width": ("uint", "32u"),
    "thread_index_in_quadgroup": ("uint", "at->lane % 4"),
    "thread_index_in_simdgroup": ("uint", "at->lane"),
    "thread_index_in_threadgroup": ("uint", "at->index"),
    "thread_position_in_grid": ("uint3", "__msl_uint3(at->grid_position)"),
    "thread_position_in_threadgroup": ("uint3", "__msl_uint3(at->group_position)"),
    "threadgroup_position_in_grid": ("uint3", "__msl_uint3(at->threadgroup_position)"),
    "threadgroups_per_grid": ("uint3", "__msl_uint3(at->groups)"),
    "threads_per_grid": ("uint3", "__msl_uint3(at->grid_size)"),
    "threads_per_simdgroup": ("uint", "32u"),
    "threads_per_threadgroup": ("uint3", "__msl_uint3(at->group_size)"),
}

METAL_TYPES = {
    "float32": "float",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "complex64": "complex64_t",
    "bool": "bool",
    "bool_": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def dtype_name(dtype: Any) -> str:
    """`mx.float32`, `np.dtype('float32')` or `'float32'` -> `'float32'`."""
    return str(dtype).rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Argument:
    """An array that a kernel is called with."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the generated signature; `kind` tells what the launch passes there."""

    kind: str  # input, shape, strides, ndim or output
    array: str
    type: str
    is_reference: bool

    @property
    def name(self) -> str:
        return self.array if self.kind in ("input", "output") else f"{self.array}_{self.kind}"


@dataclass(frozen=True)
class Kernel:
    """What a custom kernel is made of, and what it is instantiated with."""

    name: str
    source: str
    header: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    template: tuple[tuple[str, Any], ...] = ()
    atomic_outputs: bool = False

    @property
    def metal_version(self) -> int:
        """As `__METAL_VERSION__`: Metal 4 where the text asks for tensors, as macOS 26 has it."""
        return 400 if "<MetalPerformancePrimitives/" in self.header + self.source else 310

    def parameters(self) -> list[Parameter]:
        """The buffers of MLX's signature, in order."""
        parameters = []
        for a in self.inputs:
            space = "constant" if a.size < SMALLEST_DEVICE_INPUT else "device"
            kind = f"const {space} {METAL_TYPES[a.dtype]}"
            parameters.append(Parameter("input", a.name, kind, not a.shape))
            parameters += self._geometry(a)
        for a in self.outputs:
            element = METAL_TYPES[a.dtype]
            element = f"atomic<{element}>" if self.atomic_outputs else element
            parameters.append(Parameter("output", a.name, f"device {element}", False))
        return parameters

    def _geometry(self, a: Argument) -> list[Parameter]:
        """The shape, strides and rank of an input that the body mentions."""
        known = {"shape": ("int", False), "strides": ("int64_t", False), "ndim": ("int", True)}
        return [
            Parameter(kind, a.name, f"const constant {type_}", reference)
            for kind, (type_, reference) in known.items()
            if a.shape and f"{a.name}_{kind}" in self.source
        ]

    def attributes(self) -> list[str]:
        """The attributes that MLX declares: those named in the body, headers aside."""
        return [name for name in ATTRIBUTES if name in self.source]

    def generated(self, function: str) -> str:
        """What MLX generates, word for word: Apple's compiler is given its prelude and this.

        Args:
            function: What MLX calls it: the kernel's name and what tells its instances apart.
        """
        text = f"{self.header}{self._signature(function)}{self.source}\n}}\n"
        return text + (f"\n{self._instantiation(function)}\n" if self.template else "")

    def text(self, entry_point: bool) -> str:
        """The translation unit for clang, to be compiled after MLX's prelude.

        Args:
            entry_point: Whether to add the function through which the emulator calls a thread.
        """
        parts = [
            '#line 1 "header.metal"',
            rewrite(self.header, threadgroup_variables=False),
            '#line 1 "signature.metal"',
            rewrite(self._signature(self._function)).removesuffix("\n"),
            '#line 1 "body.metal"',
            rewrite(expand_storage(self.source, self.header)),
            "}",
            '#line 1 "entry.metal"',
        ]
        if self.template:
            parts.append(rewrite(self._instantiation(self._function)))
        if entry_point:
            parts.append(self._entry_point())
        return "\n".join(parts) + "\n"

    @property
    def _function(self) -> str:
        return f"custom_kernel_{self.name}"

    def _signature(self, function: str) -> str:
        lines = [
            f"  {p.type}{'&' if p.is_reference else '*'} {p.name} [[buffer({i})]]"
            for i, p in enumerate(self.parameters())
        ]
        lines += [f"  {ATTRIBUTES[name][0]} {name} [[{name}]]" for name in self.attributes()]
        head = ", ".join(f"{_template_value(v)[0]} {name}" for name, v in self.template)
        head = f"template <{head}>\n" if head else ""
        return f"{head}[[kernel]] void {function}(\n" + ",\n".join(lines) + ") {\n"

    def _instantiation(self, function: str) -> str:
        instance = self._instance(function)
        host_name = f'[[host_name("{function}")]]'
        return f"template {host_name} [[kernel]] decltype({instance}) {instance};"

    def _instance(self, function: str) -> str:
        values = ", ".join(_template_value(v)[1] for _, v in self.template)
        return function + (f"<{values}>" if values else "")

    def _entry_point(self) -> str:
        values = [
            f"{'*' if p.is_reference else ''}({p.type}*)arguments[{i}]"
            for i, p in enumerate(self.parameters())
        ]
        values += [ATTRIBUTES[name][1] for name in self.attributes()]
        return (
            'extern "C" void msl_entry(thread ulong* arguments, '
            "const thread __msl_coordinates* at) {\n"
            f"  {self._instance(self._function)}({', '.join(values)});\n}}"
        )


def _template_value(value: Any) -> tuple[str, str]:
    if isinstance(value, bool):
        return "bool", str(int(value))
    if isinstance(value, int):
        return "int", str(value)
    return "typename", METAL_TYPES[dtype_name(value)]


def as_template(pairs: Sequence[tuple[str, Any]] | None) -> tuple[tuple[str, Any], ...]:
    """Template arguments with dtypes by name, so that they can be compared and hashed."""
    known = (bool, int)
    return tuple((n, v if isinstance(v, known) else dtype_name(v)) for n, v in pairs or ())

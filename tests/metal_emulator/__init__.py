"""Checks and runs Metal kernels on Linux, without a Mac. README.md tells how."""

from .build import CompileError, why_not
from .check import check
from .emulator import (
    KernelFault,
    Launch,
    Options,
    StrictError,
    install,
    last_launch,
    metal_kernel,
    options,
    record,
)
from .frontend import Argument, Kernel

__all__ = [
    "Argument",
    "CompileError",
    "Kernel",
    "KernelFault",
    "Launch",
    "Options",
    "StrictError",
    "check",
    "install",
    "last_launch",
    "metal_kernel",
    "options",
    "record",
    "why_not",
]

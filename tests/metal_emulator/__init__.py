"""Checks and runs Metal kernels on Linux, without a Mac. README.md tells how."""

from .build import CompileError, why_not
from .check import check
from .emulator import KernelFault, StrictError, install, metal_kernel
from .frontend import Argument, Kernel
from .launches import Counts, Launch, Options, Report, last_launch, options, record

__all__ = [
    "Argument",
    "CompileError",
    "Counts",
    "Kernel",
    "KernelFault",
    "Launch",
    "Options",
    "Report",
    "StrictError",
    "check",
    "install",
    "last_launch",
    "metal_kernel",
    "options",
    "record",
    "why_not",
]

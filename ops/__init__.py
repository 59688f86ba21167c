"""Neighborhood attention operators for MLX."""

from .backend import (
    Explanation,
    explain,
    get_backend,
    get_support_matrix,
    has_cuda,
    has_metal,
    has_nanobind,
    set_backend,
    use_backend,
)
from .dense import merge_attentions
from .functional import na1d, na2d, na3d
from .neighborhood import Neighborhood

__all__ = [
    "Explanation",
    "Neighborhood",
    "use_backend",
    "explain",
    "get_backend",
    "get_support_matrix",
    "has_cuda",
    "has_metal",
    "has_nanobind",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "set_backend",
]

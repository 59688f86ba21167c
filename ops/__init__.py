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
from .deformable import sample_maps
from .dense import attention, merge_attentions
from .exports import exporting
from .functional import attend, na1d, na2d, na3d
from .neighborhood import Neighborhood
from .packed import attend_packed, na1d_qkvpacked, na2d_qkvpacked, na3d_qkvpacked
from .preparation import Preparation, prepare
from .qk_rpb import (
    na1d_av_fused,
    na1d_qk_rpb,
    na2d_av_fused,
    na2d_qk_rpb,
    na3d_av_fused,
    na3d_qk_rpb,
)
from .unfused import (
    attend_av,
    attend_qk,
    na1d_av,
    na1d_qk,
    na2d_av,
    na2d_qk,
    na3d_av,
    na3d_qk,
)
from .varlen import attend_varlen, na1d_varlen, na2d_varlen, na3d_varlen

__all__ = [
    "Explanation",
    "Neighborhood",
    "Preparation",
    "attend",
    "attend_av",
    "attend_packed",
    "attend_qk",
    "attend_varlen",
    "attention",
    "explain",
    "exporting",
    "get_backend",
    "get_support_matrix",
    "has_cuda",
    "has_metal",
    "has_nanobind",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_av_fused",
    "na1d_qk",
    "na1d_qk_rpb",
    "na1d_qkvpacked",
    "na1d_varlen",
    "na2d",
    "na2d_av",
    "na2d_av_fused",
    "na2d_qk",
    "na2d_qk_rpb",
    "na2d_qkvpacked",
    "na2d_varlen",
    "na3d",
    "na3d_av",
    "na3d_av_fused",
    "na3d_qk",
    "na3d_qk_rpb",
    "na3d_qkvpacked",
    "na3d_varlen",
    "prepare",
    "sample_maps",
    "set_backend",
    "use_backend",
]

"""The models, one file per architecture, and what gets them by their names."""

from ..pretrained.load import create_model, load_pretrained
from ..pretrained.registry import ARCHITECTURES, get_record, list_models
from .allin1 import AllInOne, AllInOneConfig
from .base import Classifier, Config, Model
from .dinat_s import DiNAT_s, DiNATsConfig
from .dinov2 import DINOv2, DINOv2Config
from .hdit import HDiT
from .hdit_config import HDiTConfig
from .isotropic import IsotropicConfig, IsotropicNAT
from .ltx_config import LTXDecoderConfig
from .ltx_decoder import LTXDecoder
from .mask2former import Mask2Former, Mask2FormerConfig
from .na_unetr import NAUNETR, NAUNETRConfig
from .naf import NAF, NAFConfig
from .nat import NAT, DiNAT, Hierarchical, NATConfig
from .nat1d import NAT1D, NAT1DConfig
from .nat3d import NAT3D, DiNAT3D, NAT3DConfig, inflate
from .oneformer import OneFormer, OneFormerConfig
from .pmrf import PMRF, PMRFConfig
from .upernet import UPerNet, UPerNetConfig

ARCHITECTURES.update(
    (cls.__name__, cls)
    for cls in (
        NAT,
        DiNAT,
        DiNAT_s,
        IsotropicNAT,
        UPerNet,
        NAT1D,
        NAT3D,
        DiNAT3D,
        AllInOne,
        NAF,
        NAUNETR,
        Mask2Former,
        OneFormer,
        LTXDecoder,
        DINOv2,
        HDiT,
        PMRF,
    )
)

__all__ = [
    "ARCHITECTURES",
    "NAF",
    "NAT",
    "NAT1D",
    "NAT3D",
    "NAUNETR",
    "PMRF",
    "AllInOne",
    "AllInOneConfig",
    "Classifier",
    "Config",
    "DINOv2",
    "DINOv2Config",
    "DiNAT",
    "DiNAT3D",
    "DiNAT_s",
    "DiNATsConfig",
    "HDiT",
    "HDiTConfig",
    "Hierarchical",
    "IsotropicConfig",
    "IsotropicNAT",
    "LTXDecoder",
    "LTXDecoderConfig",
    "Mask2Former",
    "Mask2FormerConfig",
    "Model",
    "NAFConfig",
    "NAT1DConfig",
    "NAT3DConfig",
    "NATConfig",
    "NAUNETRConfig",
    "OneFormer",
    "OneFormerConfig",
    "PMRFConfig",
    "UPerNet",
    "UPerNetConfig",
    "create_model",
    "get_record",
    "inflate",
    "list_models",
    "load_pretrained",
]

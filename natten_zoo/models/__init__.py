"""The models, one file per architecture."""

from .allin1 import AllInOne, AllInOneConfig
from .base import Config, Model
from .dinat_s import DiNAT_s, DiNATsConfig
from .isotropic import IsotropicConfig, IsotropicNAT
from .na_unetr import NAUNETR, NAUNETRConfig
from .naf import NAF, NAFConfig
from .nat import NAT, DiNAT, NATConfig
from .nat1d import NAT1D, NAT1DConfig
from .nat3d import NAT3D, DiNAT3D, NAT3DConfig, inflate
from .upernet import UPerNet, UPerNetConfig

# What a configuration file or a page of configs/ may name as its architecture.
ARCHITECTURES: dict[str, type[Model]] = {
    cls.__name__: cls
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
    )
}

__all__ = [
    "ARCHITECTURES",
    "NAF",
    "NAT",
    "NAT1D",
    "NAT3D",
    "NAUNETR",
    "AllInOne",
    "AllInOneConfig",
    "Config",
    "DiNAT",
    "DiNAT3D",
    "DiNAT_s",
    "DiNATsConfig",
    "IsotropicConfig",
    "IsotropicNAT",
    "Model",
    "NAFConfig",
    "NAT1DConfig",
    "NAT3DConfig",
    "NATConfig",
    "NAUNETRConfig",
    "UPerNet",
    "UPerNetConfig",
    "inflate",
]

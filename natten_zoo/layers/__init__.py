"""Layers shared by the models, usable on their own."""

from .deformable_attention import DeformableAttention
from .dinat_attention import (
    DinatAttention,
    DinatAttention1D,
    DinatAttention2D,
    DinatAttention3D,
)
from .drop_path import DropPath, drop_path_schedule
from .init import init_weights
from .mlp import MLP, ReLUMLP, SwiGLU
from .neighborhood_attention import (
    NeighborhoodAttention,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from .patch_embed import PatchEmbed
from .rotary import axial_split, grid_places, rotate_at
from .transformer_layer import TransformerLayer

__all__ = [
    "MLP",
    "DeformableAttention",
    "DinatAttention",
    "DinatAttention1D",
    "DinatAttention2D",
    "DinatAttention3D",
    "DropPath",
    "NeighborhoodAttention",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "PatchEmbed",
    "ReLUMLP",
    "SwiGLU",
    "TransformerLayer",
    "axial_split",
    "drop_path_schedule",
    "grid_places",
    "init_weights",
    "rotate_at",
]

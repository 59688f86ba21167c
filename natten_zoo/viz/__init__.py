"""Looking inside: what a token sees, layer by layer. Drawing needs the extra ``viz``."""

from .attention import LayerView, view_layers

__all__ = ["LayerView", "view_layers"]

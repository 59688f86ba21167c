"""Looking inside: what a token sees, layer by layer. Drawing needs the extra ``viz``."""

from .attention import LayerView, by_level, reach, rollout, view_layers

__all__ = ["LayerView", "by_level", "reach", "rollout", "view_layers"]

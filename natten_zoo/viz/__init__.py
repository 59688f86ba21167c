"""Looking inside: what a token sees, layer by layer. Drawing needs the extra `viz`."""

from .attention import LayerView, by_level, reach, rollout, view_layers
from .maps import attention_maps

__all__ = ["LayerView", "attention_maps", "by_level", "reach", "rollout", "view_layers"]

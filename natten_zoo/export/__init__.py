"""Models as files that MLX runs without this library: from C++, from Swift, or from Python."""

from .exported import Exported, load_exported
from .model import export_model

__all__ = ["Exported", "export_model", "load_exported"]

"""Published weights: their names, their files, getting them in and out of a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..configs.record import Record
from .readers.errors import CheckpointError
from .readers.reader import Checkpoint, read_checkpoint
from .registry import create_model, get_record, list_models

if TYPE_CHECKING:
    from .load import load_pretrained as load_pretrained
    from .load import load_weights as load_weights
    from .save import push_to_hub as push_to_hub
    from .save import save_pretrained as save_pretrained

# These import the models, which import the records of this package.
_LATE = {
    "load_pretrained": "load",
    "load_weights": "load",
    "save_pretrained": "save",
    "push_to_hub": "save",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Record",
    "create_model",
    "get_record",
    "list_models",
    "load_pretrained",
    "load_weights",
    "push_to_hub",
    "read_checkpoint",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Published weights: their names, their files, getting them in and out of a model."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from .record import Record
from .registry import create_model, get_record, list_models

if TYPE_CHECKING:
    from .load import load_pretrained as load_pretrained

__all__ = ["Record", "create_model", "get_record", "list_models", "load_pretrained"]


def __getattr__(name: str) -> _Any:
    if name == "load_pretrained":  # on first use: it brings the Hub's library along
        return _import_module(".load", __name__).load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Published weights: their names, their files, getting them in and out of a model."""

from .record import Record
from .registry import create_model, get_record, list_models

__all__ = ["Record", "create_model", "get_record", "list_models"]

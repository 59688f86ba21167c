"""Published weights: their names, their files, getting them in and out of a model.

The models themselves are above this package; importing [`natten_zoo.models`][] makes them known
here.
"""

from ..configs.record import Record
from .load import create_model, load_pretrained, load_weights
from .readers import Checkpoint, CheckpointError, read_checkpoint
from .registry import get_record, list_models
from .save import push_to_hub, save_pretrained

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

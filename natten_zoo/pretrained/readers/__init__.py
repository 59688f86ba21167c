"""Reading checkpoints of any known format; nothing that is pickled in them is run."""

from .errors import CheckpointError
from .reader import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "read_checkpoint"]

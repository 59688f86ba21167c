"""Training and fine-tuning: a recipe in, checkpoints that `from_pretrained` loads out.

Read `step.py` first: it is the whole training step.
"""

from .arguments import add_arguments, overrides_from
from .config import Recipe
from .launch import report, run
from .loop import Trainer

__all__ = ["Recipe", "Trainer", "add_arguments", "overrides_from", "report", "run"]

"""Sending metrics to TensorBoard or Weights & Biases, each behind an extra of its own."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Protocol

from .config import Recipe


class Tracker(Protocol):
    """Takes the lines of `metrics.jsonl` as they are written."""

    def write(self, values: dict[str, Any]) -> None:
        """Send the numbers of one line, which has a `step`."""

    def close(self) -> None:
        """Send what is left."""


def make_tracker(recipe: Recipe, out: Path, done: int = 0) -> Tracker | None:
    """The tracker that the recipe reports to, if any, for a run that is at update `done`.

    Raises:
        ImportError: Its package is not installed.
    """
    if recipe.report_to == "none":
        return None
    make = TensorBoard if recipe.report_to == "tensorboard" else WandB
    try:
        return make(recipe, out, done)
    except ImportError as error:
        raise ImportError(
            f"[report_to] {recipe.report_to} needs `pip install 'natten-zoo[{recipe.report_to}]'`."
        ) from error


class TensorBoard:
    """Event files in `OUT/tensorboard`; those of a resumed run replace what lies after `done`."""

    def __init__(self, recipe: Recipe, out: Path, done: int) -> None:
        from tensorboardX import SummaryWriter

        # Files are named by the second: a run resumed within one must not replace its own file.
        self.writer = SummaryWriter(
            str(out / "tensorboard"), purge_step=done + 1, filename_suffix=f".{done}"
        )

    def write(self, values: dict[str, Any]) -> None:
        """Add one scalar per number."""
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Write out the event file."""
        self.writer.close()


class WandB:
    """One Weights & Biases run per training run, however often that is resumed.

    `WANDB_MODE=offline` keeps it in `OUT/wandb`, for `wandb sync`.
    """

    def __init__(self, recipe: Recipe, out: Path, done: int) -> None:
        import wandb

        name = out / "wandb_id"
        if not name.exists():
            name.write_text(uuid.uuid4().hex[:12])
        self.run = wandb.init(
            dir=out, config=vars(recipe), name=out.name, id=name.read_text(), resume="allow"
        )

    def write(self, values: dict[str, Any]) -> None:
        """Log one line."""
        self.run.log(values, step=values["step"])

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()

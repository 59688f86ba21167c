"""The run around the step: epochs, validation, checkpoints, resume, and how a run ends."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..data.arrays import Batch
from ..pretrained.readers.digests import whole
from .augment import Augment
from .checkpoint import (
    LAST,
    PREVIOUS,
    RunError,
    find_latest,
    gather_random_state,
    load_state,
    recover,
    save_state,
    write_folder,
)
from .config import Recipe
from .optim import make_schedule
from .progress import Progress, draw_curve
from .rows import check_batches, epoch_rows
from .step import DEFAULT, Objective, TrainState, make_evaluate, make_step

SaveModel = Callable[[Any, Path, dict[str, Any]], None]


class Source(Protocol):
    """Where the images come from; see `natten_zoo.data.arrays` and `natten_zoo.data.stream`."""

    classes: tuple[str, ...]
    size: int
    val_size: int
    fingerprint: dict[str, str]  # by class or part: the same for the same data only

    def train_batches(self, rows: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each array of row numbers."""

    def val_batches(
        self, batch_size: int, rank: int, world: int
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """The validation images of one process in batches of one shape."""


class Trainer:
    """One run of a recipe; `fit` trains, or goes on where a run in the same folder stopped.

    Args:
        recipe: What to do.
        model: Its trainable parameters learn, in place.
        source: The images.
        augment: From uint8 images and labels to network input and targets.
        save_model: Writes a folder that `from_pretrained` loads; called on rank 0 only.
    """

    # What `evaluate` measures, the larger the better; what is minimized; whether it compiles.
    METRIC = "accuracy"
    objective: Objective = staticmethod(DEFAULT)
    fusible = True

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        source: Source,
        augment: Augment,
        save_model: SaveModel,
    ) -> None:
        world = mx.distributed.init()
        self.rank, self.world = world.rank(), world.size()
        self.recipe, self.model, self.source, self.augment = recipe, model, source, augment
        self.save_model, self.out = save_model, Path(recipe.out)
        check_batches(recipe, source.size, self.world)
        self.steps_per_epoch = source.size // recipe.batch_size
        self.total = recipe.epochs * self.steps_per_epoch
        self.state = TrainState(model, recipe, make_schedule(recipe, self.steps_per_epoch))
        mx.random.seed(recipe.seed + self.rank)
        self.train_step = make_step(self.state, recipe, augment, self.objective, self.fusible)
        self.evaluate_batch = make_evaluate(model, augment)
        self.step, self.seconds = 0, 0.0
        self.best: float | None = None  # nothing was measured
        self.accuracy: float | None = None
        self.stop_reason = ""

    def fit(self) -> dict[str, Any]:
        """Train to the end, or to a stop; return what the run achieved."""
        found, damaged = self._recover()
        latest = find_latest(self.out)
        if latest:
            position = load_state(latest, self.state, self._data())
            self.step, self.seconds = position["step"], position["seconds"]
            self.best, self.accuracy = position["best"], position["accuracy"]
        if self.step >= self.total:
            return self._summary("finished before")
        progress = Progress(self.recipe, self.out, self.total, self.step, self.rank)
        for reason in damaged:
            progress.say(f"passed over: {reason}")
        if found:
            progress.say(f"resuming {found} at update {self.step} of {self.total}")
        if self.best is not None and not whole(self.out / "best"):
            best = self.out / "best"
            progress.say(f"{best} is lost or damaged: the best from here on replaces it")
            self.best = None
        started, before = time.perf_counter(), self.seconds
        try:
            with StopOnSignal(self):
                while self.step < self.total and not self.stop_reason:
                    self._epoch(progress, started, before)
        finally:
            progress.close()
        if self.rank == 0:
            draw_curve(self.out)
        return self._summary(self.stop_reason or "finished")

    def _recover(self) -> tuple[Path | None, list[str]]:
        """Put in order what a kill left, in one process, before any of them reads it."""
        try:
            return recover(self.out, self.total, self._data()) if self.rank == 0 else (None, [])
        finally:
            mx.eval(mx.distributed.all_sum(mx.array(0.0), stream=mx.cpu))

    def _epoch(self, progress: Progress, started: float, before: float) -> None:
        """The rest of the current epoch, then validation and a checkpoint."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        rows = epoch_rows(self.recipe, epoch, self.source.size, self.rank, self.world)[done:]
        self.model.train()
        batches = self.source.train_batches(rows)
        pending: dict[str, mx.array] | None = None
        for _ in range(len(rows)):
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            metrics = self.train_step(*batch)
            mx.async_eval(metrics, *self.state.captured()[:3])
            self._check_loss(pending)  # one update late, so that the device never waits
            self.step, pending = self.step + 1, metrics
            progress.step(waited)
            # An epoch of fewer updates has a line of its own, or a short run would have no curve.
            is_last = self.step % self.steps_per_epoch == 0
            if self.step % self.recipe.log_every == 0 or (
                is_last and self.steps_per_epoch < self.recipe.log_every
            ):
                self._check_loss(metrics)
                progress.log(self.step, epoch, metrics)
            self.seconds = before + time.perf_counter() - started
            self._watch_clock(started)
            if self._agree_to_stop():
                break
            # At an epoch's end it is saved below, with the validation that belongs to it.
            due = self.recipe.save_every and self.step % self.recipe.save_every == 0
            if due and self.step % self.steps_per_epoch:
                self._check_loss(metrics)
                self._save()
        self._check_loss(pending)
        if self.step % self.steps_per_epoch == 0 and self.source.val_size:
            self._validate(progress, epoch)
        elif self.step == self.total:
            self._write_best()  # nothing tells that an earlier one is better
        self._save()

    def _check_loss(self, metrics: dict[str, mx.array] | None) -> None:
        """Refuse to go on from a loss or a gradient that is not a number."""
        if metrics is None:
            return
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(loss + norm):
            raise RunError(
                f"[train] the loss became {loss} near update {self.step}, its gradient {norm}. "
                f"{find_latest(self.out) or 'No checkpoint'} holds the last good state; try a "
                "lower learning rate, a longer warm-up or float32."
            )

    def _validate(self, progress: Progress, epoch: int) -> None:
        self.accuracy, others = self.evaluate()
        progress.write(
            {
                "step": self.step,
                "epoch": epoch,
                f"val_{self.METRIC}": round(self.accuracy, 6),
                **{f"val_{name}": round(value, 6) for name, value in others.items()},
                "seconds": round(self.seconds, 1),
            }
        )
        beside = next(f", {name} {value:.4f}" for name, value in others.items())
        progress.say(
            f"epoch {epoch + 1}/{self.recipe.epochs}: validation {self.METRIC} "
            f"{self.accuracy:.2%}{beside}"
        )
        if self.best is None or self.accuracy > self.best:
            self.best = self.accuracy
            self._write_best()

    def _write_best(self) -> None:
        if self.rank == 0:
            write_folder(self.out / "best", self._write_model)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, if the recipe keeps an average; then as before."""
        self.state.show("mean" if "mean" in self.state.weights else "now")
        try:
            yield self.model
        finally:
            self.state.show()

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """`METRIC` on the validation images, with the averaged weights if any, and other figures.

        Here these are the accuracy and the mean loss.
        """
        sums, size = mx.zeros((2,)), min(self.recipe.batch_size // self.world, 500)
        self.model.eval()
        with self.averaged():
            for images, labels in self.source.val_batches(size, self.rank, self.world):
                sums = sums + mx.stack(list(self.evaluate_batch(images, labels)))
                mx.eval(sums)
        self.model.train()
        correct, loss = mx.distributed.all_sum(sums, stream=mx.cpu) / self.source.val_size
        return float(correct), {"loss": float(loss)}

    def _save(self) -> None:
        """Write `OUT/last`, complete or not at all; the one before becomes `OUT/previous`."""
        random = gather_random_state()
        position = {
            "step": self.step,
            "best": self.best,
            "accuracy": self.accuracy,
            "seconds": self.seconds,
            **self._data(),
        }

        def fill(folder: Path) -> None:
            self._write_model(folder)
            save_state(folder, self.state, position, random)

        if self.rank == 0:
            write_folder(self.out / LAST, fill, keep=self.out / PREVIOUS)

    def _data(self) -> dict[str, Any]:
        """What a resumed run must find as it was."""
        source = self.source
        return {
            "images": source.size,
            "classes": list(source.classes),
            "files": source.fingerprint,
        }

    def _write_model(self, folder: Path) -> None:
        training: dict[str, Any] = {
            "step": self.step,
            "steps": self.total,
            "seconds": round(self.seconds, 1),
            "recipe": asdict(self.recipe),
        }
        if self.accuracy is not None:
            training[f"val_{self.METRIC}"] = round(self.accuracy, 6)
        with self.averaged():
            self.save_model(self.model, folder, training)

    def _watch_clock(self, started: float) -> None:
        limit = self.recipe.max_minutes * 60
        if limit and time.perf_counter() - started > limit:
            self.stop_reason = f"stopped after {self.recipe.max_minutes:g} minutes"

    def _agree_to_stop(self) -> bool:
        """Whether any process wants to stop: all must leave the loop at the same update."""
        if self.world > 1:
            votes = mx.distributed.all_sum(mx.array(float(bool(self.stop_reason))), stream=mx.cpu)
            if votes.item() and not self.stop_reason:
                self.stop_reason = "stopped with another process"
        return bool(self.stop_reason)

    def _summary(self, outcome: str) -> dict[str, Any]:
        measured = {f"val_{self.METRIC}": self.accuracy, f"best_val_{self.METRIC}": self.best}
        return {
            "outcome": outcome,
            "step": self.step,
            "steps": self.total,
            **{name: value for name, value in measured.items() if value is not None},
            "seconds": round(self.seconds, 1),
        }


class StopOnSignal:
    """Ctrl-C and a polite kill end the run at the next update, with a checkpoint."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        def stop(number: int, frame: Any) -> None:
            self.trainer.stop_reason = f"stopped by {signal.Signals(number).name}"
            # A second Ctrl-C is meant: it ends the process at once.
            signal.signal(number, self.before[signal.Signals(number)])

        self.before = {number: signal.signal(number, stop) for number in self.SIGNALS}

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

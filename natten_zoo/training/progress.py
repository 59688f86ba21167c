"""What a run says of itself: a progress bar, `metrics.jsonl`, a curve as PNG."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..files import write_whole
from .config import Recipe
from .trackers import make_tracker

STARVED = 0.1  # share of the time, over so many updates
ENOUGH = 10
LINE_SECONDS = 30
FEW = 30  # points of a curve that are marked


class MetricsFile:
    """One JSON object a line. A resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int = 0, say: Callable[[str], object] = str) -> None:
        self.path = path
        kept = [line for line in read_metrics(path, say) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(path, lambda file: file.write(text.encode()))

    def write(self, values: dict[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path, say: Callable[[str], object] = str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`.

    A last line that a kill cut short is left out; so is a damaged one, of which `say` is told.
    """
    lines, damaged = [], []
    texts = path.read_bytes().splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                raise ValueError("no step")
        except (ValueError, TypeError, LookupError, RecursionError):
            damaged += [] if number == len(texts) else [number]
        else:
            lines.append(line)
    if damaged:
        say(f"{path}: damaged, and left out: line {', '.join(map(str, damaged))}")
    return lines


class Progress:
    """The bar of one run on rank 0: loss, accuracy, images per second, memory, time left."""

    def __init__(self, recipe: Recipe, out: Path, steps: int, done: int, rank: int) -> None:
        self.recipe, self.rank = recipe, rank
        self.bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            # A bar returns to the start of its line, of which a log file makes one endless line.
            disable=rank > 0 or not sys.stderr.isatty(),
            mininterval=0.5,
            dynamic_ncols=True,
        )
        self.said = -math.inf
        metrics = out / "metrics.jsonl"
        self.file = MetricsFile(metrics, done, self.say) if rank == 0 else None
        self.tracker = make_tracker(recipe, out, done) if rank == 0 else None
        self.waited, self.steps, self.since = 0.0, 0, time.perf_counter()
        self.lines, self.warned = 0, False

    def step(self, waited: float) -> None:
        """Count one update, for which the data took `waited` seconds to arrive."""
        self.bar.update()
        self.steps, self.waited = self.steps + 1, self.waited + waited

    def log(self, step: int, epoch: int, metrics: dict[str, mx.array]) -> None:
        """Write a line about the last update, with the rates since the line before."""
        elapsed = time.perf_counter() - self.since
        values = {
            "step": step,
            "epoch": epoch,
            **{name: round(float(value), 6) for name, value in metrics.items()},
            "images_per_second": round(self.steps * self.recipe.batch_size / elapsed, 1),
            "data_wait": round(self.waited / elapsed, 3),
            "memory_gb": round(mx.get_peak_memory() / 1e9, 3),
        }
        self.write(values)
        self._show(
            step,
            f"epoch {epoch + 1}/{self.recipe.epochs} loss {values['loss']:.3f} "
            + (f"acc {values['accuracy']:.3f} " if "accuracy" in values else "")
            + f"{values['images_per_second']:.0f} img/s "
            f"wait {values['data_wait']:.0%} {values['memory_gb']:.1f} GB",
        )
        self._watch_loader(values["data_wait"])
        self.waited, self.steps, self.since = 0.0, 0, time.perf_counter()

    def _show(self, step: int, text: str) -> None:
        """Beside the bar, or where there is none as a line, not more than two a minute."""
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
        elif time.perf_counter() - self.said > LINE_SECONDS:
            self.said = time.perf_counter()
            self.say(f"update {step}/{self.bar.total}: {text}")

    def _watch_loader(self, wait: float) -> None:
        """Say once that the device waits for data; the first line has the loader's start in it."""
        self.lines += 1
        if wait > STARVED and self.steps >= ENOUGH and self.lines > 1 and not self.warned:
            self.warned = True
            self.say(
                f"the step waits for data {wait:.0%} of the time: more --workers or smaller image "
                "files help (scripts/benchmark_loader.py measures the loader)"
            )

    def write(self, values: dict[str, Any]) -> None:
        """Write a line of metrics to the file and the tracker."""
        if self.file is not None:
            self.file.write(values)
        if self.tracker is not None:
            self.tracker.write(values)

    def say(self, text: str) -> None:
        """Print a line above the bar, once for all processes."""
        if self.rank == 0:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar, and the tracker's run."""
        self.bar.close()
        if self.tracker is not None:
            self.tracker.close()


def draw_curve(out: Path) -> Path | None:
    """Draw loss and accuracy of a run into `OUT/curve.png`; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = read_metrics(out / "metrics.jsonl")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, names in (
        (left, ("loss", "val_loss")),
        (right, ("accuracy", "val_accuracy", "val_dice", "val_miou", "val_explained")),
    ):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    label=name,
                    linewidth=1.8 if name.startswith("val") else 0.8,
                    marker="." if len(points) < FEW else None,  # a line of one point is none
                )
        axes.set_xlabel("update")
        if axes.lines:  # a run of few updates logs none
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(out / "curve.png", dpi=130)
    return out / "curve.png"

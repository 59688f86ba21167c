#!/usr/bin/env python3
"""Can the loader keep up? Images per second of the loader, of the training step, and of both.

    python scripts/benchmark_loader.py --data flowers/ --model nat_mini
    python scripts/benchmark_loader.py --images 512 --side 224

A recipe and its options are given as to scripts/train.py. Without --data, JPEG files of noise over
gradients are written to a temporary folder. The loader's figure is what it decodes while nothing
else runs; a step that is as fast would wait for it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx.core as mx
import numpy as np
from PIL import Image

from natten_zoo.cli._results import ABOUT, append
from natten_zoo.training import Recipe, add_arguments, overrides_from
from natten_zoo.training.launch import make_trainer
from natten_zoo.training.loop import Trainer
from natten_zoo.training.rows import epoch_rows

COLUMNS = (
    *("model", "batch", "workers", "loader_per_second", "step_per_second"),
    *("both_per_second", "waited", *ABOUT),
)
LOADED = 256  # images


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-c", "--config", default="finetune", metavar="YAML", help="the recipe")
    parser.add_argument("--images", type=int, default=256, help="generated files without --data")
    parser.add_argument("--side", type=int, default=224, help="their height and width")
    parser.add_argument("--steps", type=int, default=8, help="batches per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--csv", type=Path, help="append a line to this table")
    add_arguments(parser)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        options = {"pretrained": False, "out": f"{folder}/out", **overrides_from(args)}
        if "data" not in options:
            options["data"] = str(write_images(Path(folder, "data"), args.images, args.side))
        try:
            trainer = make_trainer(Recipe.load(args.config, options))
        except (ValueError, OSError) as error:  # fewer images than a batch, among others
            parser.error(str(error))
        measure(trainer, args.steps, args.rounds, args.csv)


def write_images(folder: Path, count: int, side: int) -> Path:
    """`count` JPEG files in two classes, about as large as photos of that size."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side)[:, None, None] * rng.random((1, 1, 3))
    for index in range(count):
        target = folder / f"class {index % 2}"
        target.mkdir(parents=True, exist_ok=True)
        pixels = ramp + rng.normal(30, 20, (side, side, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(target / f"{index}.jpg", quality=85)
    return folder


def measure(trainer: Trainer, steps: int, rounds: int, table: Path | None) -> None:
    """Prints rates of the loader, the step and both, and who waits for whom."""
    recipe = trainer.recipe
    rows = epoch_rows(recipe, 0, trainer.source.size, trainer.rank, trainer.world)
    # The loader alone gets more to do: what it has decoded ahead when it starts must not count.
    many = np.resize(rows, (max(steps, LOADED // recipe.batch_size), rows.shape[1]))
    rows = np.resize(rows, (steps, rows.shape[1]))
    fixed = next(trainer.source.train_batches(rows[:1]))
    trainer.model.train()
    step(trainer, fixed)  # compiles what is compiled

    def load() -> None:
        for batch in trainer.source.train_batches(many):
            mx.eval(*batch)

    def compute() -> None:
        for _ in range(steps):
            step(trainer, fixed)

    waited: list[float] = []

    def both() -> None:
        batches, waits = trainer.source.train_batches(rows), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waits += time.perf_counter() - asked
            step(trainer, batch)
        waited.append(waits)

    seconds: dict[Callable[[], None], list[float]] = {load: [], compute: [], both: []}
    for _ in range(rounds):
        for work, times in seconds.items():
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    batches = {load: len(many), compute: steps, both: steps}
    rates = [
        batches[work] * recipe.batch_size / statistics.median(times)
        for work, times in seconds.items()
    ]
    share = statistics.median(waited) / statistics.median(seconds[both])
    print(f"batches of {recipe.batch_size}, {recipe.workers} workers, {recipe.model}, images/s:")
    print("loader {:.1f}  step {:.1f}  both {:.1f}".format(*rates))
    print(f"the loader gives {rates[0] / rates[1]:.1f} times what the step takes;", end=" ")
    print(f"the step waited for data {share:.1%} of the time")
    if table:
        names = ("loader_per_second", "step_per_second", "both_per_second")
        append(
            table,
            COLUMNS,
            model=recipe.model,
            batch=recipe.batch_size,
            workers=recipe.workers,
            waited=f"{share:.3f}",
            **{name: f"{rate:.1f}" for name, rate in zip(names, rates, strict=True)},
        )


def step(trainer: Trainer, batch: tuple[mx.array, ...]) -> None:
    """One update, finished."""
    mx.eval(trainer.train_step(*batch), *trainer.state.captured()[:3])


if __name__ == "__main__":
    main()

"""Train a model on images of your own; run the same command again to resume.

DATA is a folder with train/CLASS/* and val/CLASS/*, a folder CLASS/* (a tenth of each class is
held out), a tar archive of either, a CSV file with the columns 'file' and 'label' (and 'split'),
or a data set's name, for a model of images; what models of other inputs learn from is said below.
The classifier is replaced by one for your classes.

  natten-zoo finetune flowers/ --model nat_mini --out runs/flowers

With --task semantic the class of every pixel is learned, by a UPerNet, a Mask2Former, or a UPerNet
that is put on a classifier's body. DATA then is a folder with images/* and masks/*.png, whose
pixels are class indices (255: none), both with train/ and val/ inside or neither, and, if classes
have names, classes.txt.

  natten-zoo finetune rooms/ --task semantic --model upernet_nat_mini --out runs/rooms

With --task diffusion an HDiT learns to make such images: `natten-zoo sample -m OUT/best`.

OUT/best and OUT/last are models: `natten-zoo classify --model runs/flowers/best photo.jpg`.
OUT also gets recipe.yaml (every option as it was resolved), metrics.jsonl and curve.png. Options
come from the command line, then from the recipe (-c: a YAML file, or finetune, linear_probe, lora,
from_scratch), then from the defaults. Several machines or GPUs: `mlx.launch -n 2 ...`.

Exit status: 0 the run is finished, 1 it was stopped and can be resumed, 2 it could not run.
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    from ..configs.tasks import TASKS
    from ..training.arguments import add_arguments
    from ..training.config import Recipe

    learned = [f"for {t.name} {t.learns_from}" for t in TASKS.values() if t.learns_from]
    parser.add_argument(
        "data", nargs="?", default=argparse.SUPPRESS, metavar="DATA", help="; ".join(learned)
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="RECIPE",
        help="a YAML file, or a recipe by name (default: the one that is called like --task, else "
        "finetune, whose defaults are below)",
    )
    add_arguments(parser, skip=("data",), defaults=Recipe.load("finetune"))


def run(args: argparse.Namespace) -> int:
    """Trains, and prints the outcome."""
    from ..training import Recipe, overrides_from, report
    from ..training import run as train
    from ..training.launch import say

    overrides = overrides_from(args)
    task = overrides.get("task", "auto")
    own = "finetune" if task == "auto" else task
    result = train(Recipe.load(args.config or own, overrides))
    report(result)
    if result["outcome"].startswith("finished"):
        return 0
    say("the same command resumes the run")
    return 1

#!/usr/bin/env python3
"""Train a model by a recipe.

    python scripts/train.py -c configs/recipes/nat_pico_fashion.yaml --out runs/pico

Every option of the recipe can be given on the command line, where it wins over the file.
The same command run again goes on where a run was stopped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from natten_zoo.training import Recipe, add_arguments, overrides_from, report, run

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-c", "--config", metavar="YAML", help="the recipe")
add_arguments(parser)
args = parser.parse_args()

report(run(Recipe.load(args.config, overrides_from(args))))

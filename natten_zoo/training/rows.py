"""Which rows of the data each update and each process sees."""

from __future__ import annotations

import numpy as np

from .config import Recipe


def epoch_rows(recipe: Recipe, epoch: int, count: int, rank: int, world: int) -> np.ndarray:
    """Row numbers of an epoch for one process, `[steps, batch_size / world]`.

    The order depends on seed and epoch alone, so a resumed run goes on in the middle of it. The
    images that do not fill a last batch wait for another epoch's order.
    """
    steps, share = count // recipe.batch_size, recipe.batch_size // world
    order = np.random.default_rng([recipe.seed, epoch]).permutation(count)
    batches = order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)
    return batches[:, rank * share : (rank + 1) * share]


def check_batches(recipe: Recipe, count: int, world: int) -> None:
    """Refuse a batch that the data or the processes can't fill."""
    if recipe.batch_size > count:
        raise ValueError(
            f"[train] 'batch_size' must be at most the number of training images, "
            f"{count}, but got {recipe.batch_size}."
        )
    if recipe.batch_size % (world * recipe.accumulate):
        raise ValueError(
            f"[train] 'batch_size' must be a multiple of processes x accumulate, {world} x "
            f"{recipe.accumulate}, but got {recipe.batch_size}."
        )

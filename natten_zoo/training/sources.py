"""The data that a recipe names, opened as a model of its task takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..configs.record import Record
from ..configs.tasks import DATA_SETS
from ..data import Preprocess
from ..data.arrays import fashion_mnist_source, mnist1d_source
from ..data.fashion_mnist import is_idx_folder
from ..data.labeled import check_copies, open_labeled
from ..data.moving_fashion import MovingFashionSource
from ..data.stream import StreamSource
from ..tasks import task_of
from .config import Recipe
from .loop import Source
from .scenes import open_scene_source
from .volumes import open_volumes

# New samples of MNIST-1D that are generated to train on.
FRESH = 200_000


def open_source(recipe: Recipe, record: Record) -> Source:
    """The data that a recipe names, which the row of its model's task must know.

    Raises:
        ValueError: It is none that such models learn from, or nothing is named.
    """
    task = task_of(record)
    if recipe.data in task.data_sets:
        return DATA[recipe.data](recipe, record)
    if recipe.data in DATA_SETS or not task.files:
        raise ValueError(
            f"[train] a model of {task.inputs} learns from {task.learns_from} but got "
            f"{recipe.model!r} and {recipe.data!r}."
        )
    if not recipe.data:
        raise ValueError(f"[train] 'data' must name {task.learns_from}.")
    return FILES[task.name](recipe, record)


def _fashion_mnist(recipe: Recipe, record: Record) -> Source:
    return fashion_mnist_source(Preprocess.from_record(record))


def _mnist1d(recipe: Recipe, record: Record) -> Source:
    return mnist1d_source()


def _mnist1d_fresh(recipe: Recipe, record: Record) -> Source:
    return mnist1d_source(FRESH)


def _moving_fashion(recipe: Recipe, record: Record) -> Source:
    if record.frames is None or recipe.flip:
        raise ValueError(
            "[train] moving_fashion needs a model of clips, and 'flip' must be off: mirror "
            f"images move the other way. Got {recipe.model!r} and flip {recipe.flip}."
        )
    return MovingFashionSource(Preprocess.from_record(record), record.frames)


def _images(recipe: Recipe, record: Record) -> Source:
    preprocess = Preprocess.from_record(record)
    if is_idx_folder(recipe.data):
        return fashion_mnist_source(preprocess, recipe.data)
    out = Path(recipe.out)
    images = open_labeled(recipe.data, recipe.val_fraction, recipe.seed, out / "unpacked")
    check_copies(images)
    return StreamSource(images, preprocess, recipe.crop, out / "converted", recipe.workers)


# What opens the data sets that tasks name, and files for each task.
DATA: dict[str, Callable[[Recipe, Record], Source]] = {
    "fashion_mnist": _fashion_mnist,
    "mnist1d": _mnist1d,
    "mnist1d_fresh": _mnist1d_fresh,
    "moving_fashion": _moving_fashion,
}
FILES: dict[str, Callable[[Recipe, Record], Source]] = {
    "image-classification": _images,
    "image-segmentation": open_scene_source,
    "universal-segmentation": open_scene_source,
    "volume-segmentation": open_volumes,
    "unconditional-image-generation": _images,
}

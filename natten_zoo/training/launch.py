"""From a recipe to a run: open the data, build the model, keep the recipe, train."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import mlx.core as mx

from ..configs.record import Record
from ..data import Preprocess
from ..data.arrays import fashion_mnist_source, mnist1d_source
from ..data.fashion_mnist import is_idx_folder
from ..data.labeled import check_copies, open_labeled
from ..data.labels import class_names
from ..data.moving_fashion import MovingFashionSource
from ..data.stream import StreamSource
from ..files import write_whole
from ..models import Classifier, Model
from ..pretrained.load import load_pretrained, load_weights
from ..pretrained.quantize import refuse_quantized
from ..pretrained.registry import build_model, get_record, model_class, records
from .augment import Augment, SequenceAugment
from .config import Recipe
from .loop import Source, Trainer
from .lora import add_lora, fused
from .memory import checkpoint_layers
from .optim import choose_trainable
from .run_folder import RECIPE, check_recipe, hold_out, make_out
from .volumes import VolumeTargets, VolumeTrainer, open_volumes

# What the models do that the trainer has a loss, a metric and data for.
TASKS = (
    "image-classification",
    "video-classification",
    "sequence-classification",
    "volume-segmentation",
)
# Data of sequences: how many new samples are generated to train on; 0 is the standard training set.
SEQUENCES = {"mnist1d": 0, "mnist1d_fresh": 200_000}


def run(recipe: Recipe) -> dict[str, Any]:
    """Carry out a recipe in the folder `recipe.out`; the same call resumes what was stopped.

    Returns:
        The outcome (``finished``, ``finished before``, ``stopped ...``) and the figures.

    Raises:
        ValueError: The recipe does not fit the data, the model or the run in the folder.
        RunError: The run failed; the message says what is safe on disk.
        BusyError: Another process carries out a run in that folder.
    """
    out = make_out(recipe)
    with hold_out(out):
        check_recipe(recipe, say)
        trainer = make_trainer(recipe)
        if trainer.rank == 0:
            text = recipe.to_yaml()
            write_whole(out / RECIPE, lambda file: file.write(text.encode()))
        return trainer.fit()


def make_trainer(recipe: Recipe) -> Trainer:
    """All that a recipe names, ready to train: its data is checked, its model built.

    Raises:
        ValueError: The recipe does not fit the data or the model, or the model is of no kind that
            is trained here.
    """
    record = model_record(recipe)
    task = model_class(record.architecture).TASK
    if task not in TASKS:
        raise ValueError(
            f"[train] 'model' must be made for {', '.join(TASKS)} but got {recipe.model!r}, which "
            f"is made for {task}."
        )
    if task == "volume-segmentation":
        return make_volume_trainer(recipe, record)
    source = open_source(recipe, record)
    classes = source.classes
    say(f"{source.size:,} images to train on, {source.val_size:,} to validate on")
    mx.random.seed(recipe.seed)
    model = make_model(recipe, record, classes)
    return Trainer(recipe, model, source, make_augment(recipe, record, classes), save_model)


def make_volume_trainer(recipe: Recipe, record: Record) -> VolumeTrainer:
    """[`make_trainer`][] for a model of volumes."""
    source = open_volumes(recipe, record)
    say(f"{source.size:,} cubes an epoch, {source.val_size:,} voxels to validate on")
    mx.random.seed(recipe.seed)
    # What a note says of weights that are a start only will no longer be true.
    model = make_model(recipe, dataclasses.replace(record, note=None), source.classes)
    if model.config.in_chans != source.train[0].voxels.shape[-1]:
        raise ValueError(
            f"[train] volumes must have {model.config.in_chans} channels, as {recipe.model!r} "
            f"expects, but have {source.train[0].voxels.shape[-1]}."
        )
    targets: Any = VolumeTargets(recipe, len(source.classes))
    return VolumeTrainer(recipe, model, source, targets, save_model)


def say(text: str) -> None:
    """Print a line for people, once for all processes; standard output is left to results."""
    if mx.distributed.init().rank() == 0:
        print(text, file=sys.stderr)


def report(result: dict[str, Any]) -> None:
    """Print what a run achieved, once for all processes."""
    if mx.distributed.init().rank() == 0:
        shown = {n: f"{v:.4f}" if n.startswith(("val_", "best_")) else v for n, v in result.items()}
        print("  ".join(f"{name}={value}" for name, value in shown.items()))


def model_record(recipe: Recipe) -> Record:
    """What is known of the recipe's model: a registered name, or a saved folder or file."""
    if recipe.model in records():
        record = get_record(recipe.model)
    else:
        saved: Model = load_pretrained(None, recipe.model, lazy=True)
        if saved.record is None:
            raise ValueError(f"[train] {recipe.model!r} does not say how its images are prepared.")
        if recipe.pretrained:
            refuse_quantized(saved, "[train] 'model'")
        record = dataclasses.replace(saved.record, model=saved.config.to_dict())
    if recipe.image_size is not None:
        record = dataclasses.replace(record, input_size=recipe.image_size)
    return record


def open_source(recipe: Recipe, record: Record) -> Source:
    """The images that a recipe names, or the clips or sequences, if its model takes those."""
    if not record.input_size or recipe.data in SEQUENCES:
        if record.input_size or recipe.data not in SEQUENCES:
            raise ValueError(
                f"[train] a model of sequences learns from {' or '.join(SEQUENCES)}, and no other "
                f"model does, but got {recipe.model!r} and {recipe.data!r}."
            )
        return mnist1d_source(SEQUENCES[recipe.data])
    preprocess = Preprocess.from_record(record)
    if recipe.data == "moving_fashion":
        if record.frames is None or recipe.flip:
            raise ValueError(
                "[train] moving_fashion needs a model of clips, and 'flip' must be off: mirror "
                f"images move the other way. Got {recipe.model!r} and flip {recipe.flip}."
            )
        return MovingFashionSource(preprocess, record.frames)
    if model_class(record.architecture).TASK == "video-classification":
        raise ValueError(
            f"[train] a model of clips learns from moving_fashion but got {recipe.model!r} and "
            f"{recipe.data!r}."
        )
    if recipe.data == "fashion_mnist":
        return fashion_mnist_source(preprocess)
    if not recipe.data:
        raise ValueError("[train] 'data' must name a folder, an archive, a CSV file or a data set.")
    if is_idx_folder(recipe.data):
        return fashion_mnist_source(preprocess, recipe.data)
    out = Path(recipe.out)
    images = open_labeled(recipe.data, recipe.val_fraction, recipe.seed, out / "unpacked")
    check_copies(images)
    return StreamSource(images, preprocess, recipe.crop, out / "converted", recipe.workers)


def make_augment(recipe: Recipe, record: Record, classes: tuple[str, ...]) -> Augment:
    """The recipe's augmentation, for the kind of input that the model takes."""
    mean, std = list(record.mean), list(record.std)
    if not record.input_size:
        return SequenceAugment(recipe, len(classes), mean, std)
    return Augment(recipe, len(classes), record.input_size, mean, std)


def make_model(recipe: Recipe, record: Record, classes: tuple[str, ...]) -> Classifier:
    """The recipe's model with its head fitted to the classes and its trainable weights chosen."""
    overrides = dict(recipe.model_args)
    if recipe.drop_path is not None:
        overrides["drop_path_rate"] = recipe.drop_path
    model = cast(Classifier, build_model(record, overrides))
    if recipe.pretrained:
        load_weights(model, recipe.model, changed=overrides.keys())
    fit_head(model, record, classes, aloud=recipe.pretrained)
    if recipe.tune == "lora":
        count = add_lora(model, recipe.lora_rank, recipe.lora_scale, recipe.lora_targets)
        say(f"LoRA of rank {recipe.lora_rank} on {count} layers")
    choose_trainable(model, recipe)
    if recipe.grad_checkpoint:
        checkpoint_layers(model)
    return model


def fit_head(model: Classifier, record: Record, classes: tuple[str, ...], aloud: bool) -> None:
    """Give the model a fresh head unless its own is for these very classes, and a record."""
    if class_names(record.classes) != classes or model.config.num_classes != len(classes):
        if aloud:
            old = record.classes if isinstance(record.classes, str) else "others"
            say(
                f"the head for {model.config.num_classes} classes ({old}) is replaced by a fresh "
                f"one for {len(classes)}: {shorten(', '.join(classes), 100)}"
            )
        model.reset_classifier(len(classes))
        record = dataclasses.replace(record, classes=classes)
    # The weights are about to change: what was published of the old ones is no longer true.
    model.record = record.of_other_weights(num_classes=len(classes))


def save_model(model: Model, folder: Path, training: dict[str, Any]) -> None:
    """Write the model, LoRA fused, as a folder that `from_pretrained` loads.

    What is said about the training goes into its `config.json`.
    """
    with fused(model):
        model.save_pretrained(folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "training": training}
    path.write_text(json.dumps(config, indent=2) + "\n")

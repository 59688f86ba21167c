"""From a recipe to a run: open the data, build the model, keep the recipe, train."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import mlx.core as mx

from ..configs.record import Record
from ..configs.tasks import SCENES
from ..data.labels import class_names
from ..files import write_whole
from ..layers.checkpointing import checkpoint_layers
from ..models import Classifier, HDiT, Model, UPerNet, UPerNetConfig
from ..models.upernet import BODIES, on_body
from ..pretrained.load import load_pretrained, load_weights
from ..pretrained.quantize import refuse_quantized
from ..pretrained.registry import build_model, get_record, records
from ..tasks import TASKS, task_of
from .augment import Augment, SequenceAugment
from .config import Recipe
from .diffusion import DiffusionAugment, DiffusionTrainer
from .distill import Distillation
from .loop import Source, Trainer
from .lora import add_lora, fused
from .optim import choose_trainable
from .run_folder import RECIPE, check_recipe, hold_out, make_out
from .scenes import SceneAugment, SceneSource, SceneTrainer
from .sources import open_source
from .volumes import VolumeSource, VolumeTargets, VolumeTrainer

# Short side of the images of a UPerNet that is built on a classifier, unless a recipe says.
SCENE_SIZE = 512


def run(recipe: Recipe) -> dict[str, Any]:
    """Carry out a recipe in the folder `recipe.out`; the same call resumes what was stopped.

    Returns:
        The outcome (`finished`, `finished before`, `stopped ...`) and the figures.

    Raises:
        ValueError: The recipe does not fit the data, the model or the run in the folder.
        RunError: The run failed; the message says what is safe on disk.
        BusyError: Another process carries out a run in that folder.
    """
    out = make_out(recipe)
    with hold_out(out):
        check_recipe(recipe)
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
    task = task_of(record)
    if not task.learns_from:
        trained = ", ".join(row.name for row in TASKS.values() if row.learns_from)
        raise ValueError(
            f"[train] 'model' must be made for {trained} but got {recipe.model!r}, which is made "
            f"for {task.name}."
        )
    if recipe.task == "diffusion" and task.inputs != "noise":
        raise ValueError(
            f"[train] 'model' must be an HDiT for 'task' diffusion but got {recipe.model!r}, which "
            f"is made for {task.name}."
        )
    if recipe.teacher and TRAINERS[task.name] not in (picture_trainer, sequence_trainer):
        raise ValueError(
            f"[train] 'teacher' must be left out for {task.name}: classifiers of images, clips and "
            "sequences can have one."
        )
    source = open_source(recipe, record)
    mx.random.seed(recipe.seed)
    return TRAINERS[task.name](recipe, record, source)


def picture_trainer(recipe: Recipe, record: Record, source: Source) -> Trainer:
    """The trainer of a model of images or clips."""
    classes, values = source.classes, (list(record.mean), list(record.std))
    say(f"{source.size:,} images to train on, {source.val_size:,} to validate on")
    model = make_model(recipe, record, classes)
    augment = Augment(recipe, len(classes), record.input_size, *values)
    return with_teacher(recipe, record, model, source, augment)


def sequence_trainer(recipe: Recipe, record: Record, source: Source) -> Trainer:
    """The trainer of a model of sequences."""
    classes, values = source.classes, (list(record.mean), list(record.std))
    say(f"{source.size:,} sequences to train on, {source.val_size:,} to validate on")
    model = make_model(recipe, record, classes)
    augment = SequenceAugment(recipe, len(classes), *values)
    return with_teacher(recipe, record, model, source, augment)


def with_teacher(
    recipe: Recipe, record: Record, model: Classifier, source: Source, augment: Augment
) -> Trainer:
    """The trainer of a classifier, whose answers a teacher's are if the recipe names one."""
    if recipe.teacher:
        return Distillation(recipe, model, source, augment, save_model, record)
    return Trainer(recipe, model, source, augment, save_model)


def volume_trainer(recipe: Recipe, record: Record, source: Source) -> Trainer:
    """The trainer of a model of volumes."""
    assert isinstance(source, VolumeSource)
    say(f"{source.size:,} cubes an epoch, {source.val_size:,} voxels to validate on")
    # What a note says of weights that are a start only will no longer be true.
    model = make_model(recipe, dataclasses.replace(record, note=None), source.classes)
    if model.config.in_chans != source.train[0].voxels.shape[-1]:
        raise ValueError(
            f"[train] volumes must have {model.config.in_chans} channels, as {recipe.model!r} "
            f"expects, but have {source.train[0].voxels.shape[-1]}."
        )
    targets: Any = VolumeTargets(recipe, len(source.classes))
    return VolumeTrainer(recipe, model, source, targets, save_model)


def diffusion_trainer(recipe: Recipe, record: Record, source: Source) -> Trainer:
    """The trainer of a model that makes images."""
    if recipe.tune == "head":
        raise ValueError("[train] 'tune' must be full or lora for a model that makes images.")
    say(f"{source.size:,} images to train on, {source.val_size:,} to validate on")
    model = make_generator(recipe, record, source.classes)
    augment = DiffusionAugment(recipe, record)
    return DiffusionTrainer(recipe, model, source, augment, save_model)


def scene_trainer(recipe: Recipe, record: Record, source: Source) -> Trainer:
    """The trainer of a model that finds the class of every pixel."""
    assert isinstance(source, SceneSource)
    say(f"{source.size:,} images with masks to train on, {source.val_size:,} to validate on")
    tasks = record.tasks and ("semantic",)  # what others it did is forgotten
    model = make_model(recipe, dataclasses.replace(record, tasks=tasks), source.classes)
    augment = SceneAugment(recipe, len(source.classes), source.preprocess)
    return SceneTrainer(recipe, model, source, augment, save_model)


# By the names of tasks.
TRAINERS: dict[str, Callable[[Recipe, Record, Source], Trainer]] = {
    "image-classification": picture_trainer,
    "image-segmentation": scene_trainer,
    "universal-segmentation": scene_trainer,
    "video-classification": picture_trainer,
    "sequence-classification": sequence_trainer,
    "volume-segmentation": volume_trainer,
    "unconditional-image-generation": diffusion_trainer,
}


def say(text: str) -> None:
    """Print a line for people, once for all processes; standard output is left to results."""
    if mx.distributed.init().rank() == 0:
        print(text, file=sys.stderr)


def report(result: dict[str, Any]) -> None:
    """Print what a run achieved, once for all processes."""
    if mx.distributed.init().rank() == 0:
        shown = {n: f"{v:.4f}" if n.startswith(("val_", "best_")) else v for n, v in result.items()}
        print("  ".join(f"{name}={value}" for name, value in shown.items()))


def named_record(recipe: Recipe) -> Record:
    """What is known of what a recipe starts from: a registered name, or a saved folder or file."""
    if recipe.model in records():
        return get_record(recipe.model)
    saved: Model = load_pretrained(None, recipe.model, lazy=True)
    if saved.record is None:
        raise ValueError(f"[train] {recipe.model!r} does not say how its images are prepared.")
    if recipe.pretrained and recipe.tune != "lora":
        refuse_quantized(saved, "[train] 'model'")
    return dataclasses.replace(saved.record, model=saved.config.to_dict())


def model_record(recipe: Recipe) -> Record:
    """What is known of the model that a recipe trains: the one that it names, or a UPerNet on it.

    Raises:
        ValueError: It can't do the recipe's task.
    """
    record = named_record(recipe)
    if recipe.task == "semantic":
        record = scene_record(record, recipe)
    if recipe.image_size is not None:
        record = dataclasses.replace(record, input_size=recipe.image_size)
    return record


def scene_record(record: Record, recipe: Recipe) -> Record:
    """The record of a model that finds the class of every pixel."""
    if record.architecture in BODIES:
        body = {"architecture": record.architecture, **record.model}
        return on_body(record, UPerNetConfig(body), SCENE_SIZE)
    if task_of(record).files != SCENES:
        raise ValueError(
            "[train] 'model' must be a UPerNet, a Mask2Former, a OneFormer or a classifier "
            f"({', '.join(BODIES)}) for 'task' semantic but got {recipe.model!r}, which is made "
            f"for {task_of(record).name}."
        )
    return record


def make_model(recipe: Recipe, record: Record, classes: tuple[str, ...]) -> Classifier:
    """The recipe's model with its head fitted to the classes and its trainable weights chosen."""
    overrides = dict(recipe.model_args)
    if recipe.drop_path is not None:
        overrides["drop_path_rate"] = recipe.drop_path
    model = cast(Classifier, build_model(record, overrides))
    has_head = recipe.pretrained and named_record(recipe).architecture == record.architecture
    if has_head:
        load_weights(model, recipe.model, changed=overrides.keys())
    elif recipe.pretrained:
        cast(UPerNet, model).take_body(load_pretrained(None, recipe.model))
        say(f"a UPerNet with fresh heads is put on the body of {recipe.model}")
    fit_head(model, record, classes, aloud=has_head)
    choose_what_learns(model, recipe)
    return model


def make_generator(recipe: Recipe, record: Record, classes: tuple[str, ...]) -> HDiT:
    """The recipe's model of images with a label for each class, and its trainable weights chosen.

    Its last label stands for none, so that it can be guided; `model_args: {num_labels: 0}` is a
    model without labels.
    """
    overrides = dict(recipe.model_args)
    labels = overrides.pop("num_labels", len(classes) + 1)
    if recipe.drop_path is not None:
        raise ValueError("[train] 'drop_path' must be left out for a model that makes images.")
    if labels not in (0, len(classes) + 1):
        raise ValueError(
            f"[train] 'num_labels' must be 0 or {len(classes) + 1}, one for each class and one for "
            f"none, but got {labels}."
        )
    model = cast(HDiT, build_model(record, overrides))
    if recipe.pretrained:
        load_weights(model, recipe.model, changed=overrides.keys())
    if model.config.num_labels != labels or class_names(record.classes) != classes:
        model.reset_labels(labels)
        record = dataclasses.replace(record, classes=classes if labels else "")
    model.record = record.of_other_weights(num_classes=len(classes) if labels else 0, note=None)
    choose_what_learns(model, recipe)
    return model


def choose_what_learns(model: Model, recipe: Recipe) -> None:
    """Add LoRA, freeze what stays, and let layers be computed twice, as a recipe says."""
    if recipe.tune == "lora":
        count = add_lora(model, recipe.lora_rank, recipe.lora_scale, recipe.lora_targets)
        say(f"LoRA of rank {recipe.lora_rank} on {count} layers")
    choose_trainable(model, recipe)
    if recipe.grad_checkpoint:
        checkpoint_layers(model)


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

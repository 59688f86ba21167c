"""Distillation: a student learns the answers of a teacher, and how its features lie.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network,
https://arxiv.org/abs/1503.02531; Tung and Mori, Similarity-Preserving Knowledge Distillation,
https://arxiv.org/abs/1907.09682.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..configs.record import Record
from ..data.labels import class_names
from ..models import Classifier, load_pretrained
from ..models.staged import Staged, chosen_stages
from .config import Recipe
from .loop import Trainer
from .step import Objective, soft_cross_entropy


def soften(student: mx.array, teacher: mx.array, temperature: float) -> mx.array:
    r"""What the student's answers miss of the teacher's, in float32.

    $$T^2 \, \mathrm{KL}(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T))$$

    The factor keeps the gradient's size whatever the temperature.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Likewise; no gradient flows into it.
        temperature: $T$; the higher, the more the improbable classes count.

    Returns:
        A mean over the batch.
    """
    ours, theirs = (
        nn.log_softmax(x.astype(mx.float32) / temperature)
        for x in (student, mx.stop_gradient(teacher))
    )
    return temperature**2 * (mx.exp(theirs) * (theirs - ours)).sum(-1).mean()


def dissimilarity(student: mx.array, teacher: mx.array) -> mx.array:
    r"""How differently two models find the images of a batch alike, in float32.

    $$\frac{1}{B} \|\hat{S} \hat{S}^T - \hat{T} \hat{T}^T\|_F^2$$

    where rows are images, and those of the two products have length 1. Sizes and channels of the
    two may differ. It is $B$ times Tung and Mori's, so that its size does not depend on the batch.

    Args:
        student: Features `[batch, ...]`.
        teacher: Likewise; no gradient flows into it.
    """

    def alike(x: mx.array) -> mx.array:
        x = x.astype(mx.float32).flatten(1)
        x = x @ x.T
        return x * mx.rsqrt(x.square().sum(axis=1, keepdims=True) + 1e-12)

    difference = alike(student) - alike(mx.stop_gradient(teacher))
    return difference.square().sum() / student.shape[0]


def distilled(teacher: Classifier, recipe: Recipe) -> Objective:
    """The objective of a student: its targets, the teacher's answers, and features if wanted."""
    share, weight, stage = recipe.teacher_share, recipe.teacher_features, recipe.teacher_stage

    def objective(model: Any, x: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        loss = mx.array(0.0)
        if weight:
            (ours, theirs), logits, answers = zip_features(model, teacher, x, stage)
            loss = weight * dissimilarity(ours, theirs)
        else:
            logits, answers = model(x), teacher(x)
        loss = loss + (1 - share) * soft_cross_entropy(logits, targets)
        loss = loss + share * soften(logits, answers, recipe.temperature)
        return loss, (logits.argmax(-1) == targets.argmax(-1)).mean()

    return objective


def zip_features(
    model: Classifier, teacher: Classifier, x: mx.array, stage: int
) -> tuple[tuple[mx.array, mx.array], mx.array, mx.array]:
    """The maps of a stage of both models, and both models' logits; each runs once."""
    maps, logits = zip(*(_both(one, x) for one in (model, teacher)), strict=True)
    return (maps[0][stage], maps[1][stage]), *logits


def _both(model: Any, x: mx.array) -> tuple[list[mx.array], mx.array]:
    last, maps = model.forward_intermediates(x)
    return maps, model.forward_head(last)


def load_teacher(recipe: Recipe, record: Record, classes: tuple[str, ...]) -> Classifier:
    """The recipe's teacher, which sees what the student sees.

    Args:
        recipe: Names it.
        record: Of the student.
        classes: What is learned.

    Raises:
        ValueError: The teacher is made for another task, other classes or other inputs.
    """
    teacher: Classifier = load_pretrained(None, recipe.teacher)
    own = teacher.record
    name = f"[train] 'teacher' {recipe.teacher!r}"
    if own is None or own.architecture != type(teacher).__name__:
        raise ValueError(f"{name} does not say how its inputs are prepared.")
    if class_names(own.classes) != classes:
        raise ValueError(f"{name} must have the classes of the data: {', '.join(classes)[:200]}.")
    for field in ("mean", "std", "input_size"):
        ours, theirs = getattr(record, field), getattr(own, field)
        if ours != theirs and tuple_of(ours) != tuple_of(theirs):
            raise ValueError(
                f"{name} must see what the student sees but its {field} is {theirs}, not {ours}."
            )
    if recipe.teacher_features:
        check_stage(teacher, recipe.teacher_stage, name)
    teacher.freeze()
    teacher.eval()
    return teacher


def check_stage(model: Any, stage: int, name: str) -> None:
    """Refuse a model without features by stages, or without that stage."""
    if not isinstance(model, Staged):
        raise ValueError(f"{name} must have stages for 'teacher_features'.")
    chosen_stages(name, [stage], len(model.feature_info))


def tuple_of(value: Any) -> Any:
    """Lists of a YAML file and tuples are the same."""
    return tuple(value) if isinstance(value, list | tuple) else value


class Distillation(Trainer):
    """A run with a teacher."""

    def __init__(
        self, recipe: Recipe, model: Any, source: Any, augment: Any, save_model: Any, record: Record
    ) -> None:
        self.teacher = load_teacher(recipe, record, source.classes)
        if recipe.teacher_features:
            check_stage(model, recipe.teacher_stage, "[train] 'model'")
        self.objective = distilled(self.teacher, recipe)
        super().__init__(recipe, model, source, augment, save_model)

"""The training step, on one page: augment, forward, backward, clip, update, average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..models import Model
from .augment import Augment
from .config import Recipe
from .optim import Packing, Schedule, Updater, average, clip

# What batch norms call what they remember of their inputs.
STATISTICS = ("running_mean", "running_var")
Metrics = dict[str, mx.array]
# From logits and targets to the loss.
Criterion = Callable[[mx.array, mx.array], mx.array]
# From the model, its input and the targets to the loss, and to the share of answers that are right
# or None where there are no answers.
Objective = Callable[[Any, mx.array, mx.array], tuple[mx.array, "mx.array | None"]]


def soft_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    r"""Mean of $-\sum_c t_c \log p_c$ for targets that are distributions, in float32."""
    return -(targets * nn.log_softmax(logits.astype(mx.float32))).sum(-1).mean()


def on_logits(criterion: Criterion) -> Objective:
    """The objective of a model whose logits and targets have their classes on the last axis."""

    def objective(model: Any, x: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        logits = model(x)  # (B, classes)
        right = logits.argmax(-1) == targets.argmax(-1)  # (B,)
        return criterion(logits, targets), right.mean()

    return objective


DEFAULT = on_logits(soft_cross_entropy)


def cast(tree: dict[str, Any], dtype: mx.Dtype) -> dict[str, Any]:
    """The tree with its floating-point arrays in `dtype`."""
    return tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, tree)


class TrainState:
    """All that changes from one update to the next; a checkpoint holds this and nothing else.

    Attributes:
        model: The network; its trainable parameters are views of `weights`.
        packing: How those parameters lie in a vector.
        weights: `{"now": vector}` of float32 masters, and `"mean"`, their moving average, if
            there is one.
        updater: The optimizer with its moments, its step and its learning rate.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, schedule: Schedule) -> None:
        self.model, self.packing = model, Packing(model.trainable_parameters())
        self.weights = {"now": self.packing.pack(model.trainable_parameters())}
        if recipe.ema_decay:
            self.weights["mean"] = self.weights["now"]
        stages = model.stages() if isinstance(model, Model) else []
        self.updater = Updater(recipe, schedule, self.packing, stages)
        keep_frozen_norms(model)

    def show(self, name: str = "now") -> None:
        """Give the model the weights of that name."""
        self.model.update(self.packing.unpack(self.weights[name]))

    def statistics(self) -> dict[str, Any]:
        """The running means and variances of batch norms, which move without a gradient: a tree."""
        flat: Any = tree_flatten(self.model.parameters())
        own = [(name, value) for name, value in flat if name.rpartition(".")[2] in STATISTICS]
        tree: dict[str, Any] = tree_unflatten(own) if own else {}
        return tree

    def captured(self) -> list[Any]:
        """What the compiled step reads and writes.

        Without the random state every step would repeat the masks of the first.
        """
        return [self.model.state, self.weights, self.updater.state, mx.random.state]


def make_step(
    state: TrainState,
    recipe: Recipe,
    augment: Augment,
    objective: Objective = DEFAULT,
    fusible: bool = True,
) -> Callable[..., Metrics]:
    """Build `step(images, labels, aspect) -> metrics`, which advances `state` by one update.

    Images are uint8 `[B, S, S, C]` (clips `[B, T, S, S, C]`), labels int `[B]` and aspect float
    `[B]`, where B is this process's share of the global batch. Gradients are averaged over all
    processes.

    Args:
        state: What is advanced.
        recipe: How.
        augment: From the data's batch to the model's input and targets.
        objective: What is minimized.
        fusible: Whether the step can be compiled, if the recipe wants it.
    """
    model, weights, updater = state.model, state.weights, state.updater
    dtype, parts = getattr(mx, recipe.dtype), recipe.accumulate

    def loss_fn(
        masters: dict[str, Any], images: mx.array, targets: mx.array
    ) -> tuple[mx.array, mx.array | None]:
        statistics = state.statistics()
        model.update(cast(model.parameters(), dtype))  # frozen weights too
        model.update(cast(masters, dtype))  # gradients arrive in float32
        model.update(statistics)  # a small step would be lost in half precision
        return objective(model, images.astype(dtype), targets)

    gradient = mx.value_and_grad(loss_fn)

    def step(images: mx.array, labels: mx.array, aspect: mx.array) -> Metrics:
        everything, masters = model.parameters(), model.trainable_parameters()
        images, targets = augment(images, labels, aspect)  # (B, [T,] S, S, C), (B, classes)

        # Micro-batches bound the memory; their mean gradient is that of the whole batch.
        loss = accuracy = mx.array(0.0)
        grad = mx.zeros_like(weights["now"])  # (N,)
        for x, t in zip(images.split(parts), targets.split(parts), strict=True):
            (part, right), grads = gradient(masters, x, t)
            grad = grad + state.packing.pack(grads)
            loss, accuracy = loss + part / parts, accuracy + (0 if right is None else right / parts)
        grad = nn.utils.average_gradients({"grad": grad / parts})["grad"]

        grad, norm = clip(grad, recipe.clip_norm)
        weights["now"] = updater.apply(grad, weights["now"])
        if "mean" in weights:
            weights["mean"] = average(
                weights["mean"], weights["now"], recipe.ema_decay, updater.inner.step
            )
        statistics = nn.utils.average_gradients(state.statistics())
        model.update(everything)  # what is frozen, back from dtype
        model.update(statistics)
        state.show()
        lr = updater.inner.learning_rate
        answers = {} if right is None else {"accuracy": accuracy}
        return {"loss": loss, **answers, "grad_norm": norm, "lr": lr}

    if fusible and fuses(recipe):
        return mx.compile(step, inputs=state.captured(), outputs=state.captured())
    return step


def fuses(recipe: Recipe) -> bool:
    """Whether the step is compiled on this machine."""
    return mx.metal.is_available() if recipe.compile == "auto" else recipe.compile == "yes"


def keep_frozen_norms(model: nn.Module) -> None:
    """Let batch norms whose weights don't learn use their statistics, which then stay, too."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm) and not module.trainable_parameters():
            module.__class__ = FrozenBatchNorm
            module.eval()


class FrozenBatchNorm(nn.BatchNorm):
    """A batch norm that is in evaluation mode, whatever the model is in."""

    def _set_training_mode(self, mode: bool) -> None:
        self._training = False


def make_evaluate(model: nn.Module, augment: Augment) -> Callable[..., tuple[mx.array, mx.array]]:
    """Build `evaluate(images, labels) -> (correct, loss)`, sums over images with label >= 0.

    Images are uint8 `[B, S, S, C]` (clips `[B, T, S, S, C]`) at the network's input size. A last
    batch that is not full is padded with label -1, so that there is one shape and one compilation.
    """

    def evaluate(images: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
        logits = model(augment.prepare(images))  # (B, classes)
        known = labels >= 0
        losses = nn.losses.cross_entropy(logits, mx.maximum(labels, 0))  # (B,)
        correct = (logits.argmax(-1) == labels) & known
        return correct.sum(), (losses * known).sum()

    if fuses(augment.recipe):
        return mx.compile(evaluate, inputs=[model.state])
    return evaluate

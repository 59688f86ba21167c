"""How the weights move: the schedule, and which parameters decay and how fast they learn.

The trainable parameters are kept in one vector. An update is then some twenty operations whatever
the number of tensors, and per-parameter settings are vectors of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .config import Recipe

Schedule = Callable[[mx.array], mx.array]


def make_schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    r"""Learning rate as a function of the update: warm-up, then cosine, steps or a constant.

    $$lr(t) = lr_{min} + (lr - lr_{min}) \frac{1 + \cos(\pi t / T)}{2}$$
    """
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    floor = min(recipe.min_lr, recipe.lr)

    def schedule(step: mx.array) -> mx.array:
        t = step.astype(mx.float32)
        done = mx.clip((t - warmup) / max(1, total - warmup), 0, 1)
        if recipe.schedule == "cosine":
            rate = floor + (recipe.lr - floor) * 0.5 * (1 + mx.cos(math.pi * done))
        elif recipe.schedule == "step":
            rate = recipe.lr * mx.where(done < 0.6, 1.0, mx.where(done < 0.85, 0.1, 0.01))
        else:
            rate = mx.full((), recipe.lr)
        rising = recipe.lr * (1e-3 + (1 - 1e-3) * t / max(1, warmup))
        return mx.where(t < warmup, rising, rate)

    return schedule


class Packing:
    """How a tree of parameters lies in one float32 vector: the order, names and shapes.

    Every parameter starts at a multiple of 256 bytes, which matrix products on CUDA count on;
    the gaps are zeros.

    Args:
        parameters: The tree, as `model.trainable_parameters()` gives it.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        flat: Any = tree_flatten(parameters)
        self.shapes: dict[str, tuple[int, ...]] = {name: value.shape for name, value in flat}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.rooms = [-(-size // ALIGNMENT) * ALIGNMENT for size in self.sizes]

    def pack(self, tree: dict[str, Any]) -> mx.array:
        """The vector of a tree."""
        flat: Any = tree_flatten(tree)
        parts = []
        for (_, value), size, room in zip(flat, self.sizes, self.rooms, strict=True):
            parts.append(value.astype(mx.float32).reshape(-1))
            if room > size:
                parts.append(mx.zeros((room - size,)))
        return mx.concatenate(parts)

    def unpack(self, vector: mx.array) -> dict[str, Any]:
        """The tree of a vector, as views of it."""
        parts = mx.split(vector, np.cumsum(self.rooms)[:-1].tolist())
        items = zip(self.shapes.items(), parts, self.sizes, strict=True)
        tree: dict[str, Any] = tree_unflatten(
            [(name, part[:size].reshape(shape)) for (name, shape), part, size in items]
        )
        return tree

    def spread(self, values: dict[str, float]) -> mx.array:
        """The vector that has one number per parameter, repeated over its elements."""
        return mx.array(np.repeat([values[n] for n in self.shapes], self.rooms).astype(np.float32))


ALIGNMENT = 64  # float32 numbers


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Weight decay is for matrices and convolutions: not norms, biases, layer scale or rpb."""
    return len(shape) >= 2 and not name.endswith("rpb")


def layer_rates(names: list[str], decay: float, stages: Sequence[str]) -> dict[str, float]:
    """Learning-rate factor per parameter: `decay` to the power of its distance from the top.

    Args:
        names: Of the parameters.
        decay: The factor from one stage to the one below it.
        stages: The model's parts from the input up, which it tells
            ([`natten_zoo.models.Model.stages`][]); what is in none of them is on top.

    Raises:
        ValueError: `decay` is not 1 and the model tells no stages.
    """
    if decay != 1 and not stages:
        raise ValueError(
            f"[train] 'layer_decay' must be 1 for a model that tells no stages but got {decay}."
        )

    found = {
        name: next((i for i, stage in enumerate(stages) if name.startswith(f"{stage}.")), None)
        for name in names
    }
    # Stages without a parameter that learns are no steps.
    steps = sorted({place for place in found.values() if place is not None})
    below = {place: len(steps) - step for step, place in enumerate(steps)}
    return {name: decay ** (0 if i is None else below[i]) for name, i in found.items()}


class Updater:
    """An optimizer from `mlx.optimizers` plus decoupled decay and a rate per layer.

    The inner optimizer proposes new weights without decay; the proposal is scaled by the layer's
    rate and decayed by `lr * weight_decay` where `decays` says so. One rule for AdamW, SGD and
    Lion, and one learning rate in the optimizer's state.
    """

    def __init__(
        self, recipe: Recipe, schedule: Schedule, packing: Packing, stages: Sequence[str]
    ) -> None:
        self.inner = _make_inner(recipe, schedule)
        self.inner.init({"weights": mx.zeros((sum(packing.rooms),))})
        shapes = packing.shapes
        self.rate = packing.spread(layer_rates(list(shapes), recipe.layer_decay, stages))
        decay = recipe.weight_decay
        self.decay = packing.spread({n: decay * decays(n, s) for n, s in shapes.items()})

    @property
    def state(self) -> dict[str, Any]:
        """The inner optimizer's state: moments, step and learning rate."""
        return self.inner.state

    def apply(self, gradient: mx.array, weights: mx.array) -> mx.array:
        """New weights `[N]` from their gradient `[N]`."""
        proposed = self.inner.apply_gradients({"weights": gradient}, {"weights": weights})
        change = proposed["weights"] - weights
        return weights + self.rate * (change - self.inner.learning_rate * self.decay * weights)


def _make_inner(recipe: Recipe, schedule: Schedule) -> optim.Optimizer:
    if recipe.optimizer == "sgd":
        return optim.SGD(schedule, momentum=recipe.momentum)
    if recipe.optimizer == "lion":
        return optim.Lion(schedule, betas=recipe.betas)
    return optim.Adam(schedule, betas=recipe.betas, bias_correction=True)


def clip(gradient: mx.array, largest: float) -> tuple[mx.array, mx.array]:
    """The gradient `[N]` scaled down to a norm of at most `largest` (0: as it is), and its norm."""
    norm = mx.sqrt(mx.square(gradient).sum())
    if largest:
        gradient = gradient * mx.minimum(largest / (norm + 1e-6), 1.0)
    return gradient, norm


def average(mean: mx.array, weights: mx.array, decay: float, step: mx.array) -> mx.array:
    """Exponential moving average of the weights; the first steps average over fewer of them."""
    t = step.astype(mx.float32)
    keep = mx.minimum(decay, (1 + t) / (10 + t))
    return weights + keep * (mean - weights)


def freeze_body(model: nn.Module) -> str:
    """Freeze what is below a model's head; of one on a backbone all that is on top learns.

    Returns:
        What the names of the frozen layers begin with.
    """
    if "backbone" in model:
        model.backbone.freeze()
        return "backbone."
    model.freeze()
    model.head.unfreeze()
    return ""


def choose_trainable(model: nn.Module, recipe: Recipe) -> None:
    """Freeze what the recipe keeps fixed: all but the head, or what begins with listed names.

    Raises:
        ValueError: Nothing is called like one of them, or nothing is left to learn.
    """
    if recipe.tune == "head":
        freeze_body(model)
    modules = dict(model.named_modules())
    parameters: Any = tree_flatten(model.parameters())
    for prefix in recipe.freeze:
        found = [name for name, _ in parameters if f"{name}.".startswith(f"{prefix}.")]
        if not found:
            raise ValueError(f"[freeze] no part of the model is called {prefix!r}.")
        for name in found:
            owner, _, key = name.rpartition(".")
            modules[owner].freeze(recurse=False, keys=key)
    if not tree_flatten(model.trainable_parameters()):
        raise ValueError(
            f"[train] 'freeze' must leave something to learn but got {', '.join(recipe.freeze)}."
        )

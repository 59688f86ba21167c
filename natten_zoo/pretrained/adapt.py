"""Fitting published weights to a model that was built with other arguments."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..layers.resize import cubic_matrix
from .protocol import Loadable

logger = logging.getLogger("natten_zoo")

# The first convolution of a model, or of its body.
STEMS = ("patch_embed.proj.weight", "patch_embed.proj.0.weight")


def adapt(
    weights: Mapping[str, mx.array], model: Loadable, changed: Collection[str]
) -> dict[str, mx.array]:
    """Change the weights that depend on what the caller overrode; say so in the log.

    - `kernel_size, img_size`: bias tables are resized bicubically, as upstream made its 11x11
      model
    - `in_chans`: the first convolution sums over (gray) or repeats its input channels
    - `num_classes`: the classifier is left out: the model keeps its fresh one

    Dilations are in no weight. Anything else that does not fit is left for
    `natten_zoo.pretrained.strict.load_strict` to report.

    Args:
        weights: The checkpoint, in the model's names and layouts.
        model: The model, built with the overrides.
        changed: Names of the overridden arguments.

    Returns:
        The weights that fit the model, its fresh classifier among them if it replaces the old.
    """
    target = dict(tree_flatten(model.parameters()))
    result = dict(weights)
    if {"kernel_size", "img_size"} & set(changed):
        _resize_tables(result, target)
    if "in_chans" in changed:
        _adapt_stem(result, target)
    if "num_classes" in changed:
        for name in model.CLASSIFIERS:
            _replace_head(result, target, name, model.EXTRA_OUTPUTS)
    return result


def resize_bias_table(table: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Resize a bias table `[heads, *old]` to `[heads, *shape]` by cubic interpolation.

    The same values as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`:
    Keys' kernel with a = -0.75, no antialiasing, borders repeated.
    """
    values = np.array(table.astype(mx.float32), dtype=np.float64)
    for axis, size in enumerate(shape, start=1):
        matrix = cubic_matrix(values.shape[axis], size)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return mx.array(values.astype(np.float32)).astype(table.dtype)


def adapt_input_channels(weight: mx.array, in_chans: int) -> mx.array:
    """Fit a convolution `[out, height, width, channels]` to another number of channels.

    One channel gets the sum over all, so that a gray image gives what it gave as three equal
    channels. More channels repeat the old ones, scaled by `old / in_chans` to keep the sum.
    """
    old = weight.shape[-1]
    if in_chans == 1:
        return weight.sum(axis=-1, keepdims=True)
    repeated = mx.take(weight, mx.arange(in_chans) % old, axis=-1)
    return repeated * (old / in_chans)


def _resize_tables(weights: dict[str, mx.array], target: Mapping[str, mx.array]) -> None:
    resized = []
    for name, value in weights.items():
        if not name.endswith(".rpb") or name not in target:
            continue
        shape = target[name].shape
        if value.shape != shape and value.ndim == len(shape) and value.shape[0] == shape[0]:
            weights[name] = resize_bias_table(value, shape[1:])
            resized.append(f"{value.shape[1:]} -> {shape[1:]}")
    if resized:
        logger.warning("%d bias tables resized, %s", len(resized), resized[0])


def _adapt_stem(weights: dict[str, mx.array], target: Mapping[str, mx.array]) -> None:
    for name in [n for n in weights if n.endswith(STEMS)]:
        if name in target and weights[name].shape != target[name].shape:
            in_chans = target[name].shape[-1]
            weights[name] = adapt_input_channels(weights[name], in_chans)
            logger.warning("%s adapted to %d input channels", name, in_chans)


def _replace_head(
    weights: dict[str, mx.array], target: Mapping[str, mx.array], head: str, extra: int
) -> None:
    old, new = weights.get(f"{head}.weight"), target.get(f"{head}.weight")
    if old is None or (new is not None and old.shape == new.shape):
        return
    for name in (f"{head}.weight", f"{head}.bias"):
        weights.pop(name, None)
        if name in target:
            weights[name] = target[name]
    counts = old.shape[0] - extra, 0 if new is None else new.shape[0] - extra
    logger.warning("classifier of %d classes replaced by a fresh one of %d", *counts)

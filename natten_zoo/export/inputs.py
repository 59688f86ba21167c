"""What an exported function takes: examples of a model's inputs, and pixels instead of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from ..configs.record import Record
from ..data.preprocess import Preprocess
from ..models import NAF, PMRF, AllInOne, HDiT, LTXDecoder, Model

FRAMES = 32  # of a clip, where nothing says how many
FEATURES = 384  # channels that NAF is given, one place for each 16 x 16 pixels
# Where neither a size is given nor a record has one: frames of music, steps of a sequence, pixels.
MUSIC, STEPS, PIXELS = 500, 40, 224

Size = int | Sequence[int]
Inputs = dict[str, mx.array]


def example_inputs(model: Model, size: Size | None, batch: int) -> Inputs:
    """Zeros of the shapes that a model takes, by the names of its arguments.

    Args:
        model: Any model of the zoo.
        size: Its input's sides: one number for all of them (frames of a clip stay the record's), or
            one for each axis. Default: the record's.
        batch: Inputs.

    Raises:
        ValueError: The number of sides is wrong.
    """
    config = model.config
    sides = _sides(model, size)
    x = mx.zeros((batch, *sides, getattr(config, "in_chans", 0)))
    if isinstance(model, AllInOne):
        return {"x": mx.zeros((batch, config.num_stems, *sides, config.num_bands))}
    if isinstance(model, PMRF):  # the mean; its flow, `model.model`, is a model of its own
        return {"image": mx.zeros((batch, *sides, model.config.flow.in_chans))}
    if isinstance(model, NAF):
        cells = (n // 16 for n in sides)
        return {"image": x, "features": mx.zeros((batch, *cells, FEATURES))}
    if isinstance(model, LTXDecoder):  # the noise is given: a file has no random numbers
        return {"latents": x, "noise": mx.zeros((batch, *config.size_of(sides), config.out_chans))}
    if isinstance(model, HDiT):
        more: Inputs = {"sigma": mx.ones(batch)}
        if config.num_labels:
            more["labels"] = mx.zeros(batch, mx.int32)
        if config.cond_dim:
            more["cond"] = mx.zeros((batch, config.cond_dim))
        return {"x": x, **more}
    return {"x": x}


def _sides(model: Model, size: Size | None) -> tuple[int, ...]:
    axes = axes_of(type(model))
    if size is None and isinstance(model, LTXDecoder):
        size = model.config.smallest
    if size is None or isinstance(size, int):
        size = usual_sides(type(model), model.record, size)
    if len(size) != len(axes) or min(size) < 1:
        raise ValueError(
            f"[export_model] 'size' must be one positive number, or one for each of "
            f"{', '.join(axes)}, but got {list(size)}."
        )
    return tuple(size)


def axes_of(architecture: type[Model]) -> tuple[str, ...]:
    """The axes whose sides a file fixes."""
    return ("frames",) if architecture is AllInOne else architecture.AXES


def usual_sides(
    architecture: type[Model], record: Record | None, side: int | None = None
) -> tuple[int, ...]:
    """One side for every axis, the record's where none is said; frames of a clip are the record's.

    What an `LTXDecoder` takes its configuration says.
    """
    axes = axes_of(architecture)
    if side is None:
        usual = {"frames": MUSIC, "length": STEPS}.get(axes[-1], PIXELS)
        side = (record.input_size if record else 0) or usual
    frames = (record.frames if record else None) or FRAMES
    is_clip = len(axes) > 1
    return tuple(frames if is_clip and axis == "frames" else side for axis in axes)


def function_of(
    model: Model, names: Sequence[str], prepare: Preprocess | None = None
) -> Callable[..., tuple[mx.array, ...]]:
    """What is exported: float32 in and out, whatever the model computes in.

    Args:
        model: The model.
        names: Of its arguments, in the order in which the function takes them.
        prepare: Has the function take pixels of the right size, uint8, and normalize them itself.
    """
    dtype = _dtype(model)

    def function(*inputs: mx.array) -> tuple[mx.array, ...]:
        if prepare is not None:
            mean, std = mx.array(prepare.mean), mx.array(prepare.std)
            inputs = tuple((x.astype(mx.float32) / 255 - mean) / std for x in inputs)
        outputs = call(model, dict(zip(names, inputs, strict=True)), dtype)
        return tuple(y.astype(mx.float32) for y in outputs.values())

    return function


def call(
    model: Model, inputs: Mapping[str, mx.array], dtype: mx.Dtype | None = None
) -> dict[str, mx.array]:
    """What a model makes of its inputs, by name."""
    dtype = dtype or _dtype(model)
    outputs = model(
        **{k: x.astype(dtype) if x.dtype == mx.float32 else x for k, x in inputs.items()}
    )
    if isinstance(outputs, mx.array):
        return {"logits" if model.CLASSIFIERS else "output": outputs}
    if hasattr(outputs, "_asdict"):
        return dict(outputs._asdict())
    flat: Any = tree_flatten(outputs)
    return {f"output{name}": y for name, y in flat}


def _dtype(model: Model) -> mx.Dtype:
    """What a model computes in."""
    parameters: Any = tree_flatten(model.parameters())
    for _, value in parameters:
        if mx.issubdtype(value.dtype, mx.floating):
            return cast(mx.Dtype, value.dtype)
    return mx.float32

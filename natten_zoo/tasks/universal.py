"""Panoptic, instance and semantic segmentation of images with a OneFormer or a Mask2Former."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..data import Preprocess, read_image
from ..data.finite import check_finite
from ..data.labels import class_colors, output_names
from ..data.reading import ImageError, ImageSource
from ..data.scene_classes import scene_classes
from ..layers.padding import pad_to_multiple
from ..models.oneformer import OneFormer
from ..models.universal import Universal, check_task
from ..models.universal_queries import Masks
from . import mask_rules, mask_rules_huggingface
from .mask_rules import Frame, Segment
from .segmentation import Segmentation
from .segments import Segments

RULES = ("original", "huggingface")
# To a multiple of this the authors pad an image.
MULTIPLE = 32


@dataclass(frozen=True)
class Wanted:
    """What to look for in images, and by which rules.

    Args:
        task: `"panoptic"`, `"instance"` or `"semantic"`.
        keep: Least score of a query. Default: the authors', 0.5 of a OneFormer and 0.8 of a
            Mask2Former; of instances 0.5.
        overlap: Least part of a mask that must not belong to others, for panoptic segmentation.
        top: How many instances to look at. Default: as many as the model has queries.
        things: Indices of the classes that are counted. Default: those of the record's label set;
            all, where it is not known.
        rules: `"original"`, the authors', or `"huggingface"`, which pads nothing and differs in
            [details][natten_zoo.tasks.mask_rules_huggingface].

    Raises:
        ValueError: One of them is none of these.
    """

    task: str = "panoptic"
    keep: float | None = None
    overlap: float = 0.8
    top: int | None = None
    things: Sequence[int] | None = None
    rules: str = "original"

    def __post_init__(self) -> None:
        check_task("find_segments", self.task)
        if self.rules not in RULES:
            raise ValueError(
                f"[find_segments] 'rules' must be one of {', '.join(RULES)} but got {self.rules!r}."
            )
        for name in ("keep", "overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"[find_segments] '{name}' must be in 0..1 but got {value!r}.")
        if self.top is not None and self.top < 1:
            raise ValueError(f"[find_segments] 'top' must be positive but got {self.top!r}.")


def find_segments(
    model: Universal, image: ImageSource, wanted: Wanted | str = "panoptic"
) -> Segments | Segmentation:
    """Find the things and the stuff in an image of any size.

    The image is resized as the model's record says, then padded; masks are resized to the image's
    own size a few columns at a time, so that memory does not grow with their number.

    Args:
        model: The model, in evaluation mode.
        image: A path, a Pillow image or an array.
        wanted: What to look for, or the name of a task.

    Returns:
        [`Segments`][], or for the semantic task a [`Segmentation`][].

    Raises:
        ImageError: The image cannot be read.
        ValueError: The model was not trained for this task, or computes numbers that are none.

    Examples:
        >>> from natten_zoo.models import Mask2Former, Mask2FormerConfig, NATConfig
        >>> body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
        >>> config = Mask2FormerConfig(body, channels=32, num_queries=5, num_classes=7, depth=1)
        >>> model = Mask2Former(config).eval()
        >>> photo = np.zeros((30, 20, 3), np.uint8)
        >>> find_segments(model, photo, Wanted("instance", keep=0.0)).map.shape
        (30, 20)
    """
    for _, result in each_image(model, [image], wanted):
        if isinstance(result, ImageError):
            raise result
        return result
    raise AssertionError("one image has one result")


def each_image(
    model: Universal,
    images: Sequence[ImageSource],
    wanted: Wanted | str = "panoptic",
    batch_size: int = 1,
) -> Iterator[tuple[int, Segments | Segmentation | ImageError]]:
    """[`find_segments`][] of many images, in their order.

    Images that follow each other and are resized to the same size go through the model together.

    Args:
        model: The model, in evaluation mode.
        images: Paths, Pillow images or arrays.
        wanted: What to look for, or the name of a task.
        batch_size: Most images at a time.

    Yields:
        The place of an image in `images` and what was found, or why it could not be read.
    """
    wanted = Wanted(wanted) if isinstance(wanted, str) else wanted
    if batch_size < 1:
        raise ValueError(f"[each_image] 'batch_size' must be positive but got {batch_size}.")
    check_trained(model, wanted.task)
    record = model.record
    whole = Preprocess(size=640, crop_mode="whole", interpolation="bilinear")
    prepare = whole if record is None else Preprocess.from_record(record)
    group: list[_Prepared] = []
    for index, image in enumerate(images):
        try:
            prepared = _prepare(index, image, prepare)
        except ImageError as error:
            yield from _found(model, group, wanted)
            group = []
            yield index, error
            continue
        if group and (len(group) == batch_size or group[0].x.shape != prepared.x.shape):
            yield from _found(model, group, wanted)
            group = []
        group.append(prepared)
    yield from _found(model, group, wanted)


def check_trained(model: Universal, task: str) -> None:
    """Raise if it is known that a model was not trained for a task.

    Raises:
        ValueError: It was not.
    """
    tasks = () if model.record is None else model.record.tasks
    if tasks and task not in tasks:
        raise ValueError(
            f"[find_segments] 'task' must be what {model.record and model.record.name} was trained "
            f"for, {', '.join(tasks)}, but got {task!r}."
        )


def segments_of(
    model: Universal, found: Masks, frame: Frame, pixels: np.ndarray, wanted: Wanted
) -> Segments | Segmentation:
    """What the queries found in one image, as segments of it.

    Args:
        model: The model that found it.
        found: Of one image.
        frame: The sizes of its masks.
        pixels: The image, `[H, W, 3]` (gray: `[H, W]`) of uint8.
        wanted: What to look for.
    """
    label_set = None if model.record is None else model.record.classes
    classes = model.config.num_classes
    names, colors = output_names(label_set, classes), class_colors(label_set, classes)
    things = wanted.things
    if things is None:
        scene = scene_classes(label_set) or ()
        known = [index for index, entry in enumerate(scene) if entry.is_thing]
        things = known if len(scene) == classes else range(classes)
    huggingface = wanted.rules == "huggingface"
    if wanted.task == "semantic":
        square = not isinstance(model, OneFormer)
        mask = (
            mask_rules_huggingface.semantic(found, frame.size, square=square)
            if huggingface
            else mask_rules.semantic(found, frame)
        )
        return Segmentation(pixels, mask, names, colors)
    apply = _by_huggingface if huggingface else _by_original
    numbers, segments = apply(model, found, frame, wanted, things)
    return Segments(pixels, wanted.task, tuple(segments), names, colors, numbers)


class _Prepared(NamedTuple):
    """An image and what the model sees of it, `[h, w, channels]`."""

    place: int
    pixels: np.ndarray
    x: np.ndarray


def _prepare(index: int, image: ImageSource, prepare: Preprocess) -> _Prepared:
    read = read_image(image, prepare.channels)
    return _Prepared(index, np.asarray(read), prepare.normalize(np.asarray(prepare.crop(read))))


def _found(
    model: Universal, group: Sequence[_Prepared], wanted: Wanted
) -> Iterator[tuple[int, Segments | Segmentation]]:
    if not group:
        return
    x = mx.array(np.stack([prepared.x for prepared in group]))
    kept = x.shape[1], x.shape[2]
    if wanted.rules == "original":
        x = pad_to_multiple(x, MULTIPLE)
    found = model(x.astype(_dtype(model)), wanted.task)
    for name, logits in zip(("class logits", "mask logits"), found, strict=True):
        sums = logits.astype(mx.float32).sum(axis=-1)  # in which a number that is none remains
        check_finite("find_segments", name, np.array(sums))
    for i, (index, pixels, _) in enumerate(group):
        frame = Frame((x.shape[1], x.shape[2]), kept, (pixels.shape[0], pixels.shape[1]))
        one = Masks(found.classes[i : i + 1], found.masks[i : i + 1])
        yield index, segments_of(model, one, frame, pixels, wanted)


def _dtype(model: Universal) -> mx.Dtype:
    return model.decoder.query_embed.dtype


def _by_original(
    model: Universal, found: Masks, frame: Frame, wanted: Wanted, things: Sequence[int]
) -> tuple[np.ndarray | None, list[Segment]]:
    if wanted.task == "panoptic":
        keep = model.KEEP if wanted.keep is None else wanted.keep
        return mask_rules.panoptic(found, frame, things, keep=keep, overlap=wanted.overlap)
    keep = 0.5 if wanted.keep is None else wanted.keep
    segments = mask_rules.instances(found, frame, things=things, top=wanted.top, keep=keep)
    return None, [segment for segment in segments if segment.area]


def _by_huggingface(
    model: Universal, found: Masks, frame: Frame, wanted: Wanted, things: Sequence[int]
) -> tuple[np.ndarray, list[Segment]]:
    keep = 0.5 if wanted.keep is None else wanted.keep
    square, size = not isinstance(model, OneFormer), frame.size
    rules = mask_rules_huggingface
    if square and wanted.task == "instance":
        numbers, segments = rules.square_instances(found, size, keep=keep)
        # Theirs count from 0; 0 is none in every other result.
        return numbers + 1, [replace(segment, id=segment.id + 1) for segment in segments]
    if wanted.task == "instance":
        numbers, segments = rules.instances(
            found, size, things=things, keep=keep, overlap=wanted.overlap
        )
    else:
        stuff = sorted(set(range(model.config.num_classes)) - set(things))
        numbers, segments = rules.panoptic(
            found, size, square=square, stuff=stuff, keep=keep, overlap=wanted.overlap
        )
    return np.maximum(numbers, 0), segments

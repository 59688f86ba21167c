"""Restoring photos of faces."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from PIL import Image

from ..data.finite import check_finite
from ..data.reading import ImageSource, read_image
from ..models.pmrf import PMRF
from .samplers import flow
from .sampling import Each

# Sides of what the published weights know, for a model without a record.
SIDE = 512


@dataclass(frozen=True)
class Restored:
    """A face, restored.

    Attributes:
        image: One of those that it may have been, sharp.
        mean: The mean of them all, blurred where the photo leaves several possibilities.
        looked_at: What the model saw.
    """

    image: Image.Image
    mean: Image.Image
    looked_at: Image.Image


def restore(
    model: PMRF,
    photo: ImageSource,
    *,
    steps: int = 25,
    seed: int = 0,
    crop: bool = False,
    each: Each | None = None,
) -> Restored:
    """Restore the photo of a face that was compressed, blurred, noisy or small.

    The published weights know aligned faces, as FFHQ's: upright, the eyes in the middle, from the
    forehead to the chin, in a square of 512 pixels. Other squares are resized to that, which is
    right for such a face and for nothing else: faces are neither found nor turned here.

    Args:
        model: The model, in evaluation mode.
        photo: The image.
        steps: Of the flow; the authors take 25.
        seed: Of the noise where it begins.
        crop: Take the middle square of a photo that is none, which is an error otherwise.
        each: Is called after each step with the steps done and all there are.

    Raises:
        ImageError: The photo cannot be read.
        ValueError: It is no square, or an argument is out of range.

    Examples:
        >>> from natten_zoo.models import PMRF, PMRFConfig
        >>> small = {"widths": (16, 32), "depths": (1, 1), "head_dims": 16, "mapping_dim": 16}
        >>> model = PMRF(PMRFConfig(small, embed_dim=12, depths=(1,), num_heads=2)).eval()
        >>> restore(model, np.zeros((90, 90, 3), np.uint8), steps=1).image.size
        (512, 512)
    """
    if steps < 1:
        raise ValueError(f"[restore] 'steps' must be positive but got {steps}.")
    face = square(read_image(photo), crop)
    side = (model.record and model.record.input_size) or SIDE
    if face.size != (side, side):
        face = face.resize((side, side), Image.Resampling.BICUBIC)
    y = mx.array(np.asarray(face, np.float32) / 255)[None]
    mean = mx.clip(model(y).astype(mx.float32), 0, 1)
    mx.eval(mean)
    noise = mx.random.normal(mean.shape, key=mx.random.key(seed))
    x = mean + model.config.noise_std * noise

    def velocity(x: mx.array, time: float) -> mx.array:
        return model.velocity(x, mx.full(x.shape[0], time))

    for done, moved in enumerate(flow(velocity, x, steps), start=1):
        mx.eval(x := moved)
        if each is not None:
            each(done, steps)
    return Restored(_image(x), _image(mean), face)


def square(photo: Image.Image, crop: bool = False) -> Image.Image:
    """The photo if it is a square; its middle square if that is wanted.

    Raises:
        ValueError: It is none.
    """
    width, height = photo.size
    if width == height:
        return photo
    if not crop:
        raise ValueError(
            f"[restore] 'photo' must be a square with one aligned face but is {width}x{height}: "
            "cut the face out, or take the middle square with crop=True (--crop)."
        )
    side = min(photo.size)
    left, top = (width - side) // 2, (height - side) // 2
    return photo.crop((left, top, left + side, top + side))


def _image(values: mx.array) -> Image.Image:
    """`[1, H, W, 3]` of 0..1, rounded as torchvision does."""
    array = np.array(values[0])
    check_finite("restore", "image", array)
    return Image.fromarray(np.clip(array * 255 + 0.5, 0, 255).astype(np.uint8))

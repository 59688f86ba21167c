"""The `preprocessor_config.json` of Hugging Face's image processors, as arguments of `Preprocess`.

Every key that changes the image is computed or refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

# Where ConvNeXt's processor begins to squash the image instead of cropping it.
_CONVNEXT_SQUASHES = 384


@dataclass(frozen=True)
class _Kind:
    """What a processor does where its configuration does not say.

    Attributes:
        resample: Pillow's number of its filter.
        crops: Whether it cuts the center out.
        short: Whether a size without names is that of the short side, not of a square.
        pads: Whether padding is left to the model.
    """

    resample: int = 2
    crops: bool = False
    short: bool = False
    pads: bool = False


_KINDS = {
    "ViT": _Kind(),
    "DeiT": _Kind(3, crops=True),
    "Bit": _Kind(3, crops=True, short=True),
    "CLIP": _Kind(3, crops=True, short=True),
    "ConvNext": _Kind(short=True),
    # Whose models pad by themselves.
    "OneFormer": _Kind(short=True, pads=True),
    "Mask2Former": _Kind(short=True, pads=True),
}
# Steps that change nothing that is not done here anyway, or masks only.
_HARMLESS = ("do_convert_rgb", "do_reduce_labels")
_STEPS = ("do_resize", "do_rescale", "do_normalize")
# Other keys by which an image comes out another: they must not be set.
_REFUSED = ("offset", "rescale_offset", "size_divisor", "pad_size", "auto_map")
_PADDING = ("size_divisor", "do_pad")


def read_processor(
    config: Mapping[str, Any], filters: Mapping[int, str], longest: int
) -> dict[str, Any]:
    """Translate the configuration of an image processor.

    Args:
        config: The file's content.
        filters: Names of the resampling filters by Pillow's numbers.
        longest: The long side of an image that keeps its shape, in short sides at most.

    Raises:
        ValueError: A key is missing, of another type, or asks for something else than resizing, a
            center crop, division by 255 and normalization; the message names it.
    """
    name, kind = _kind(config)
    _check_steps({k: v for k, v in config.items() if k not in _PADDING or not kind.pads})
    resample = config.get("resample", kind.resample)
    if type(resample) is not int or resample not in filters:
        known = ", ".join(f"{number} ({filters[number]})" for number in sorted(filters))
        raise _wrong("resample", f"one of {known}", resample)
    shape = _convnext(config) if name == "ConvNext" else _shape(config, kind, not name, longest)
    return {
        **shape,
        "interpolation": filters[resample],
        "mean": _values(config, "image_mean"),
        "std": _values(config, "image_std"),
    }


def _kind(config: Mapping[str, Any]) -> tuple[str, _Kind]:
    key = "image_processor_type" if "image_processor_type" in config else "feature_extractor_type"
    value = config.get(key)
    if value is None:
        return "", _Kind()
    for name, kind in _KINDS.items():
        for end in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor"):
            if value == name + end:
                return name, kind
    known = ", ".join(f"{name}ImageProcessor" for name in _KINDS)
    raise _wrong(key, f"one of {known}", value)


def _check_steps(config: Mapping[str, Any]) -> None:
    for name in _STEPS:
        if config.get(name, True) is not True:
            raise _wrong(name, "true", config[name])
    for name, value in config.items():
        known = name in _STEPS or name in _HARMLESS or name == "do_center_crop"
        if (name in _REFUSED or (name.startswith("do_") and not known)) and value:
            raise _wrong(name, "missing or false", value)
    factor = config.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or abs(factor * 255 - 1) > 1e-6:
        raise _wrong("rescale_factor", "1 / 255", factor)


def _shape(config: Mapping[str, Any], kind: _Kind, unnamed: bool, longest: int) -> dict[str, Any]:
    crops = config.get("do_center_crop", kind.crops)
    if not isinstance(crops, bool):
        raise _wrong("do_center_crop", "true or false", crops)
    short = not config["default_to_square"] if "default_to_square" in config else kind.short
    side, is_short = _size(config, short or (crops and unnamed))
    if not crops:
        size = config["size"]
        if not is_short:
            return {"size": side, "crop_mode": "squash", "crop_pct": _own_crop(config, 1.0)}
        edge = size.get("longest_edge") if isinstance(size, Mapping) else None
        if type(edge) is int and edge >= side:
            whole = {"size": side, "crop_mode": "whole", "crop_pct": _own_crop(config, 1.0)}
            return whole | {"longest": None if edge == longest * side else edge}
        raise _wrong("size", "a square, or 'do_center_crop' be true,", size)
    crop = _side("crop_size", _get(config, "crop_size"))
    if crop > side or not (is_short or crop == side):
        wanted = f"a 'shortest_edge' of at least the {crop} pixels of 'crop_size'"
        raise _wrong("size", wanted, config["size"])
    if not is_short:  # squashed, and nothing to cut off
        return {"size": side, "crop_mode": "squash", "crop_pct": 1.0}
    return {"size": crop, "crop_mode": "center", "crop_pct": _own_crop(config, crop / side, side)}


def _convnext(config: Mapping[str, Any]) -> dict[str, Any]:
    side, is_short = _size(config, True)
    crop_pct = config.get("crop_pct", 224 / 256)
    if not is_short:
        raise _wrong("size", "a 'shortest_edge'", config["size"])
    if not _is_number(crop_pct) or not 0 < crop_pct <= 1:
        raise _wrong("crop_pct", "a number in (0, 1]", crop_pct)
    if side >= _CONVNEXT_SQUASHES:
        return {"size": side, "crop_mode": "squash", "crop_pct": 1.0}
    return {"size": side, "crop_mode": "center", "crop_pct": crop_pct}


def _own_crop(config: Mapping[str, Any], crop_pct: float, side: int | None = None) -> float:
    """The `crop_pct` that this library writes, if it means the same; else one that does.

    Args:
        config: The file's content.
        crop_pct: What is kept of the short side.
        side: The length that it is resized to, `floor(size / crop_pct)`.
    """
    own = config.get("crop_pct", crop_pct)
    if not _is_number(own) or not 0 < own <= 1:
        raise _wrong("crop_pct", "a number in (0, 1]", own)
    if side is None:
        return own
    crop = round(crop_pct * side)
    # Rounded, a quotient can be one pixel short.
    return next(p for p in (own, crop_pct, crop / (side + 0.5)) if math.floor(crop / p) == side)


def _size(config: Mapping[str, Any], short: bool) -> tuple[int, bool]:
    """A side in pixels, and whether it is the short one (else both)."""
    size = _get(config, "size")
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return _side("size", size["shortest_edge"]), True
    return _side("size", size), short and not isinstance(size, Mapping)


def _side(name: str, value: Any) -> int:
    """One side of a square, which is written as a number or by names."""
    side = value
    if isinstance(value, Mapping):
        side = value.get("height") if value.get("height") == value.get("width") else None
    if type(side) is not int or side < 1:
        raise _wrong(name, "pixels, or as many in 'height' as in 'width'", value)
    return side


def _values(config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = _get(config, name)
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(map(_is_number, values)):
        raise _wrong(name, "a number for each channel", value)
    return tuple(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _get(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"[Preprocess] '{name}' is missing.")
    return config[name]


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"[Preprocess] '{name}' must be {wanted} but got {repr(value)[:100]}.")

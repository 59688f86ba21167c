"""Every published variant, one page per family."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

PAGES = (
    "nat",
    "dinat",
    "dinat_s",
    "isotropic",
    "fashion",
    "emoji",
    "upernet",
    "oneformer",
    "mask2former",
    "nat1d",
    "nat3d",
    "dinat3d",
    "allin1",
    "naf",
    "ltx_decoder",
    "dinov2",
    "na_unetr",
    "hdit",
    "pmrf",
)


@cache
def load_page(name: str) -> dict[str, Any]:
    """The YAML page `configs/<name>.yaml` as plain data; don't change what it returns."""
    page: dict[str, Any] = yaml.safe_load(
        (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    )
    return page


def variants() -> dict[str, dict[str, Any]]:
    """`{variant: {"architecture", "model", "checkpoint"}}` of all pages, defaults filled in."""
    result: dict[str, dict[str, Any]] = {}
    for page in map(load_page, PAGES):
        defaults = page["defaults"]
        for name, variant in page["variants"].items():
            result[name] = {
                "architecture": page["architecture"],
                "model": {**defaults["model"], **variant["model"]},
                "checkpoint": {**defaults["checkpoint"], **variant["checkpoint"]},
            }
    return result


def named_dilations(name: str, depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The dilations that a page of `configs/dilations.yaml` has for levels of some depths.

    Args:
        name: Such as `"detection-800"`.
        depths: Layers per level.

    Raises:
        ValueError: There is no such name, or its patterns do not fill these levels.

    Examples:
        >>> named_dilations("segmentation-512", (3, 4, 6, 5))[0]
        (1, 16, 1)
    """
    known = load_page("dilations")
    if name not in known:
        raise ValueError(
            f"[named_dilations] 'dilations' must be lists or one of {', '.join(known)} but got "
            f"{name!r}."
        )
    patterns = known[name]
    if len(patterns) != len(depths) or any(
        depth % len(pattern) for depth, pattern in zip(depths, patterns, strict=False)
    ):
        raise ValueError(
            f"[named_dilations] 'depths' must be those that {name!r} is for, multiples of "
            f"{tuple(map(len, patterns))}, but got {tuple(depths)}."
        )
    return tuple(
        tuple(pattern) * (depth // len(pattern))
        for depth, pattern in zip(depths, patterns, strict=True)
    )

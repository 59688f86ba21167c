"""Every published variant, one page per family."""

from __future__ import annotations

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
    "upernet",
    "oneformer",
    "mask2former",
    "nat1d",
    "nat3d",
    "dinat3d",
    "allin1",
    "naf",
    "na_unetr",
)


@cache
def load_page(name: str) -> dict[str, Any]:
    """The YAML page ``configs/<name>.yaml`` as plain data; don't change what it returns."""
    page: dict[str, Any] = yaml.safe_load(
        (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    )
    return page


def variants() -> dict[str, dict[str, Any]]:
    """``{variant: {"architecture", "model", "checkpoint"}}`` of all pages, defaults filled in."""
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

"""Prints which models `natten-zoo export` writes, at which sizes and on which tiers, as Markdown.

python scripts/export_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

from natten_zoo import create_model, get_record, list_models
from natten_zoo.export.inputs import usual_sides
from natten_zoo.models import ARCHITECTURES, LTXDecoder

# PMRF's mean has shifted windows, and DINOv2 attends to everything.
WITHOUT_KERNELS = ("PMRF", "DINOv2")
# What `--size` takes where that is not any.
SIZES = {
    "DINOv2": "from 14",
    "HDiT": "multiples of patch x 2^(levels - 1)",
    "LTXDecoder": "from the usual one",
    "NAF": "from 48",
    "PMRF": "multiples of 64",
}


def main() -> None:
    """Prints the table."""
    print("| models | usual size | other sizes | `--for cpu` | `--for metal` |")
    print("| --- | --- | --- | --- | --- |")
    groups: dict[tuple[str, str], list[str]] = {}
    for name in list_models():
        groups.setdefault((get_record(name).architecture, usual_size(name)), []).append(name)
    for (architecture, size), names in sorted(groups.items()):
        kernels = "MLX's operations" if architecture in WITHOUT_KERNELS else "kernels"
        models = ", ".join(f"`{name}`" for name in names)
        print(f"| {models} | {size} | {SIZES.get(architecture, 'any')} | `pure` | {kernels} |")


def usual_size(name: str) -> str:
    """The sides of a model's input where `--size` says nothing."""
    record, architecture = get_record(name), ARCHITECTURES[get_record(name).architecture]
    if architecture is LTXDecoder:
        return " x ".join(map(str, create_model(name).config.smallest))
    return " x ".join(map(str, usual_sides(architecture, record)))


if __name__ == "__main__":
    main()

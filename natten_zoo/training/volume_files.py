"""Finding volumes and their labels, by whatever name their folders go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..data.copies import first_copies
from ..data.listing import is_system, subfolders
from ..data.volumes import SUFFIXES
from ..data.warning import listed, warn

# What the folders of images and of labels are called: here, by nnU-Net, by others.
PAIRS = (
    *(("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks")),
    *(("image", "label"), ("image", "mask"), ("img", "label"), ("volumes", "segmentations")),
)
_FIRST_CHANNEL = re.compile(r"_0000(?=\.nii)")


def volume_files(folder: Path) -> list[tuple[Path, Path]]:
    """The images of a folder and their labels, in the order of their names.

    They lie in folders of one of the names in `PAIRS`; a label may lack the `_0000` that
    nnU-Net adds to the name of its image.

    Raises:
        ValueError: There are no images, or one has no labels.
    """
    images_in, labels_in = next(
        (pair for pair in PAIRS if all((folder / name).is_dir() for name in pair)), PAIRS[0]
    )
    found = (folder / images_in).glob("*")
    images = sorted(filter(is_volume, found))
    if not images:
        raise ValueError(
            f"[train] {folder} must have volumes images/NAME.nii.gz and labels/NAME.nii.gz, or be "
            "stardist's wheel, but has none."
        )
    labels = [folder / labels_in / path.name for path in images]
    labels = [p if p.is_file() else p.with_name(_FIRST_CHANNEL.sub("", p.name)) for p in labels]
    if missing := [path.name for path in labels if not path.is_file()]:
        raise ValueError(f"[train] {folder / labels_in} lacks {', '.join(missing)}.")
    others = (p for p in subfolders(folder) if p.name not in (images_in, labels_in))
    if unused := [p.name for p in others if any(map(is_volume, p.rglob("*")))]:
        warn(f"not used of {folder}: {listed([f'{name}/' for name in unused])}")
    return list(zip(images, labels, strict=True))


def is_volume(path: Path) -> bool:
    """Whether a file is called as volumes are, and no system left it."""
    return path.name.endswith(SUFFIXES) and not is_system(path.name)


def check_copies(images: Sequence[Path], kept: int) -> None:
    """Refuse a volume to validate on that is trained on, too, under another name.

    Args:
        images: All of them; the last are validated on.
        kept: How many of them, the first, are trained on.

    Raises:
        ValueError: There is one.
    """
    for place, first in enumerate(first_copies(images)):
        if first < kept <= place:
            raise ValueError(
                f"[train] {images[place]} would be validated on but is a copy of {images[first]}, "
                "which is trained on."
            )

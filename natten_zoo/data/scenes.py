"""Images with a mask of classes each: finding them, their parts, and reading the two together.

A mask is an image of its image's size whose pixels are class indices: gray, or a palette's indices,
of 8 bits. 255 is no class: such pixels are neither learned nor counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .copies import first_copies
from .labels import output_names, read_labels
from .listing import images_in, subfolders
from .reading import ImageError, look_at_all, open_image, read_image
from .splits import TRAIN, VAL, part_of
from .warning import listed, warn

IGNORE = 255
# What the folders of images and of masks are called: here, by ADE20K, PASCAL VOC and others.
PAIRS = (
    *(("images", "masks"), ("images", "labels"), ("images", "annotations")),
    *(("image", "mask"), ("image", "label"), ("img", "mask"), ("imgs", "masks")),
    *(("images", "segmentations"), ("JPEGImages", "SegmentationClass")),
)
CLASS_FILES = ("classes.txt", "classes.json")
LAYOUT = (
    "images/ and masks/, both with train/ and val/ or neither, or train/ and val/ with images/ and "
    "masks/ each"
)


class Scene(NamedTuple):
    """The files of an image and of its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Scenes:
    """A data set of images with masks.

    Attributes:
        classes: Name of each class.
        train: What to train on.
        val: What to validate on.
        reduce_labels: Whether masks number classes from 1, and 0 is no class.
        fingerprint: A digest of each part: names and sizes of images, content of masks.
        named: Whether the data says what its classes are called.
    """

    classes: tuple[str, ...]
    train: tuple[Scene, ...]
    val: tuple[Scene, ...]
    reduce_labels: bool
    fingerprint: dict[str, str]
    named: bool


def open_scenes(
    data: str | os.PathLike[str],
    val_fraction: float = 0.0,
    seed: int = 0,
    reduce_labels: bool = False,
    workers: int = 4,
) -> Scenes:
    """List a folder of images and masks, and look into every file once.

    Args:
        data: The folder: `images/` and `masks/` (`PAIRS` has other names of them), or such with
            `train/` and `val/` inside, or inside of those; and, if classes have names,
            `classes.txt`, one a line, or `classes.json`. An image and its mask are called
            alike, but for what follows the last dot.
        val_fraction: Share that is held out where the data has no `val/`.
        seed: Decides which images are held out. Copies of an image stay together.
        reduce_labels: Masks number classes from 1, and 0 is no class, as ADE20K's do.
        workers: Threads that look.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Images lack masks, masks are no class indices, have another size or classes that
            nobody named, or images to validate on are trained on, too; each is named.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"[data] no such folder: {folder}.")
    parts = find_parts(folder)
    scenes = [scene for part in parts.values() for scene in part]
    looks = _look_at(scenes, reduce_labels, workers)
    classes, named = _classes(folder, scenes, [look.largest for look in looks])
    train, val = parts[TRAIN], parts.get(VAL, ())
    if val:
        _check_copies(train, val)
    elif val_fraction > 0:
        train, val = split(train, val_fraction, seed)
    digests = dict(zip(scenes, (look.digest for look in looks), strict=True))
    prints = {name: _digest(folder, part, digests) for name, part in ((TRAIN, train), (VAL, val))}
    return Scenes(classes, tuple(train), tuple(val), reduce_labels, prints, named)


def find_parts(folder: Path) -> dict[str, Sequence[Scene]]:
    """The scenes of each part of a data set; of one without parts they are to train on.

    Raises:
        ValueError: There are none, or an image has no mask.
    """
    inner = {part: sub for sub in subfolders(folder) if (part := part_of(sub.name))}
    if pair := _pair(folder):
        images, masks = pair
        theirs = {part: sub for sub in subfolders(images) if (part := part_of(sub.name))}
        if not theirs:
            return {TRAIN: _match(images, masks)}
        found = {
            part: (sub, next((m for m in subfolders(masks) if part_of(m.name) == part), None))
            for part, sub in theirs.items()
        }
    else:
        found = {part: _pair(sub) or (sub, None) for part, sub in inner.items()}
        found = {part: pair for part, pair in found.items() if pair[1] or part in (TRAIN, VAL)}
    if TRAIN not in found or any(masks is None for _, masks in found.values()):
        raise ValueError(f"[data] {folder} must have {LAYOUT}.")
    if unused := [str(image) for part, (image, _) in found.items() if part not in (TRAIN, VAL)]:
        warn(f"not used of {folder}: {listed(unused)}")
    return {part: _match(*found[part]) for part in (TRAIN, VAL) if part in found}


def split(scenes: Sequence[Scene], fraction: float, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Hold out a share, at least one of several; copies of an image go together."""
    groups: dict[int, list[Scene]] = {}
    for place, first in enumerate(first_copies([scene.image for scene in scenes])):
        groups.setdefault(first, []).append(scenes[place])
    count = min(len(groups) - 1, max(1, round(fraction * len(groups))))
    held = set(np.random.default_rng(seed).permutation(list(groups))[:count].tolist())
    train, val = (
        [scene for first, group in groups.items() if (first in held) is is_held for scene in group]
        for is_held in (False, True)
    )
    return train, val


def read_mask(file: Path, reduce_labels: bool = False) -> np.ndarray:
    """The class of each pixel, `[H, W]` of uint8; `IGNORE` for none.

    Raises:
        ImageError: It can't be read, or is no image of one channel of 8 bits that nothing was lost
            of.
    """
    try:
        with open_image(file) as image:
            # Pillow would stretch gray of 2 or 4 bits to 0..255.
            tiles = getattr(image, "tile", None)
            raw = tiles[0][3] if tiles else None
            fits = image.mode in ("L", "P", "1") and raw not in ("L;2", "L;4")
            form, mode = image.format, image.mode
            values = np.array(image, np.uint8) if fits and form != "JPEG" else None
    except Exception as error:  # readers raise anything on damaged files
        raise ImageError(f"{file} can't be read as a mask: {error}") from error
    if values is None:
        raise ImageError(
            f"{file} must be a mask of one channel of 8 bits, class indices as gray or as a "
            f"palette, without loss (PNG), but is a {form} of mode {mode}."
        )
    if reduce_labels:
        none = (values == 0) | (values == IGNORE)
        return np.where(none, np.uint8(IGNORE), values - np.uint8(1))
    return values


class _Look(NamedTuple):
    """The largest class in a mask, -1 where there is none, and a digest of its file."""

    largest: int
    digest: str


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks in a folder."""
    pairs = ((folder / images, folder / masks) for images, masks in PAIRS)
    return next((pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()), None)


def _match(images: Path, masks: Path | None) -> list[Scene]:
    """Images and masks of the same name, also in folders; but for the suffix."""
    assert masks is not None
    of = {file.relative_to(masks).with_suffix(""): file for file in images_in(masks)}
    names = [(file, file.relative_to(images).with_suffix("")) for file in images_in(images)]
    if not names:
        raise ValueError(f"[data] {images} must have images but has none.")
    if missing := [str(file) for file, name in names if name not in of]:
        raise ValueError(f"[data] {masks} lacks the masks of {listed(missing)}.")
    if len({name for _, name in names}) < len(names):
        raise ValueError(f"[data] {images} must not have images that differ in the suffix only.")
    if unused := sorted(set(of) - {name for _, name in names}):
        warn(f"masks without an image in {masks}: {listed(list(map(str, unused)))}")
    return [Scene(file, of[name]) for file, name in names]


def _look_at(scenes: Sequence[Scene], reduce_labels: bool, workers: int) -> list[_Look]:
    """Decode everything, before training.

    Raises:
        ImageError: Naming every file that can't be used.
    """

    def look(scene: Scene) -> _Look:
        width, height = read_image(scene.image).size
        mask = read_mask(scene.mask, reduce_labels)
        if mask.shape != (height, width):
            size = "{1} x {0}".format(*mask.shape)
            raise ImageError(
                f"{scene.mask} must have the {width} x {height} pixels of its image but is {size}"
            )
        known = mask[mask != IGNORE]
        digest = sha256(scene.mask.read_bytes()).hexdigest()
        return _Look(int(known.max()) if known.size else -1, digest)

    return look_at_all(look, scenes, "images or masks can't be used", workers)


def _classes(
    folder: Path, scenes: Sequence[Scene], largest: Sequence[int]
) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether the data says them."""
    file = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    count = 1 + max(largest)
    names = read_labels(file) if file else output_names(None, count)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"[data] {file or folder} must have two classes or more, no two of one name, but has "
            f"{listed(list(names)) or 'none'}."
        )
    if len(names) < count:
        place = largest.index(count - 1)
        raise ValueError(
            f"[data] {scenes[place].mask} has class {count - 1}, but {file} names {len(names)}, "
            f"from 0 ({IGNORE} is for pixels of no class)."
        )
    return names, file is not None


def _check_copies(train: Sequence[Scene], val: Sequence[Scene]) -> None:
    files = [scene.image for scene in (*train, *val)]
    pairs = [
        f"{files[place]} = {files[first]}"
        for place, first in enumerate(first_copies(files))
        if first < len(train) <= place
    ]
    if pairs:
        raise ValueError(
            f"[data] {len(pairs)} of {len(val)} images to validate on are copies of images to "
            f"train on: {listed(pairs, 3)}. Remove one of each two."
        )


def _digest(folder: Path, part: Sequence[Scene], digests: dict[Scene, str]) -> str:
    lines = (
        f"{scene.image.relative_to(folder).as_posix()} {scene.image.stat().st_size} "
        f"{digests[scene]}"
        for scene in part
    )
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()

"""Finding labeled images for training: folders, archives and lists, and their split."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from .archives import is_archive, unpack
from .copies import first_copies, identity
from .image_folder import ImageFolder
from .listing import images_in, subfolders, why_no_file
from .lists import KINDS, Row, labeled_list, read_list
from .names import find, in_order, loose
from .splits import TEST, TRAIN, VAL, find_layout, part_of, say_unused
from .warning import listed, warn


@dataclass
class Samples:
    """Image files and the class of each.

    Attributes:
        files: Paths.
        labels: Index into the split's classes for each file.
    """

    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, file: Path, label: int) -> None:
        """Append one image."""
        self.files.append(file)
        self.labels.append(label)


@dataclass
class LabeledImages:
    """A data set: its classes, what to train on and what to validate on."""

    classes: tuple[str, ...]
    train: Samples
    val: Samples

    @property
    def fingerprint(self) -> dict[str, str]:
        """A digest of each class: paths, below the folder of all, and sizes of its files."""
        files = self.train.files + self.val.files
        root = os.path.commonpath([file.parent for file in files])
        lines: dict[str, list[str]] = {name: [] for name in self.classes}
        for part, samples in (("train", self.train), ("val", self.val)):
            for file, label in zip(samples.files, samples.labels, strict=True):
                place = f"{part} {file.relative_to(root).as_posix()} {file.stat().st_size}"
                lines[self.classes[label]].append(place)
        texts = {name: "\n".join(sorted(own)) for name, own in lines.items()}
        return {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}


def open_labeled(
    data: str | os.PathLike[str], val_fraction: float, seed: int, unpack_to: Path
) -> LabeledImages:
    """Lists a data set of images.

    Args:
        data: A folder `CLASS/*`; or with `train/CLASS/*` and `val/CLASS/*`, by whatever name
            (`natten_zoo.data.splits.PARTS`); a tar or zip archive of either; or a list with
            the columns `file`, `label` and, if it says so itself, `split`, files relative to
            it (`natten_zoo.data.lists.COLUMNS` has other names of them).
        val_fraction: Share of each class held out where the data has no split of its own.
        seed: Decides which images are held out. Copies of an image stay together.
        unpack_to: Where an archive is unpacked, once for as long as it does not change.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a class is empty, there is one class only, validation has a class that
            training has not, a file is both trained and validated on or has two labels, or an
            archive is damaged or has no images.
    """
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(f"[data] no such file or folder: {path}.")
    if not path.is_dir() and (kind := why_no_file(path)):
        raise ValueError(f"[data] {path} must be {KINDS}, but is {kind}.")
    if path.is_file() and is_archive(path):
        path = unpack(path, unpack_to)
    images = _open_list(path) if path.is_file() else _open_folder(path)
    if len(images.classes) < 2:
        raise ValueError(
            f"[data] {data} must have at least two classes but has {', '.join(images.classes)}."
        )
    _say_alike(images.classes)
    _drop_repeats(images)
    if not images.val.files and val_fraction > 0:
        images.train, images.val = split(images.train, val_fraction, seed)
    return images


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Holds out `fraction` of each class, at least one image where it has two or more.

    Images of the same bytes are held out together, or not at all, and count as one.
    """
    kept, held = Samples(), Samples()
    copies: dict[int, list[int]] = {}
    for row, first in enumerate(first_copies(samples.files)):
        copies.setdefault(first, []).append(row)
    firsts = np.array(list(copies))
    labels = np.array(samples.labels)[firsts]
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, label]).permutation(firsts[labels == label])
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        for place, first in enumerate(rows.tolist()):
            for row in copies[first]:
                (held if place < count else kept).add(samples.files[row], samples.labels[row])
    torn = [rows for rows in copies.values() if len({samples.labels[row] for row in rows}) > 1]
    if torn:
        pairs = [" = ".join(str(samples.files[row]) for row in rows[:2]) for rows in torn]
        warn(f"{len(torn)} images are in several classes: {listed(pairs, 3)}")
    return kept, held


def check_copies(images: LabeledImages) -> None:
    """Refuse images to validate on whose bytes are trained on, under whatever name.

    Raises:
        ValueError: There are such; it names some of them.
    """
    files = images.train.files + images.val.files
    count = len(images.train.files)
    pairs = [
        f"{files[place]} = {files[first]}"
        for place, first in enumerate(first_copies(files))
        if first < count <= place
    ]
    if pairs:
        raise ValueError(
            f"[data] {len(pairs)} of {len(images.val.files)} images to validate on are copies of "
            f"images to train on, so that nothing would be measured: {listed(pairs, 3)}. Remove "
            "one of each two."
        )


def class_parents(data: Path) -> list[Path]:
    """The folders of a data set that hold one folder per class, the one to train on first."""
    layout = find_layout(data)
    return [layout.train, *filter(None, [layout.val])]


def _open_folder(path: Path) -> LabeledImages:
    layout = find_layout(path)
    say_unused(path, layout)
    images = _open_part(layout.train)
    if layout.val is None:
        return images
    held = _open_part(layout.val)
    places = _known(held.classes, images.classes)
    images.val = Samples(held.train.files, [places[label] for label in held.train.labels])
    return images


def _open_part(folder: Path) -> LabeledImages:
    """The images of one folder: those of its folders, or of the list that it has instead."""
    inner = [sub.name for sub in subfolders(folder) if images_in(sub)]
    if (len(inner) < 2 or all(map(part_of, inner))) and (list_file := labeled_list(folder)):
        return _open_list(list_file)
    found = ImageFolder.open(folder)
    return LabeledImages(found.classes, Samples([*found.files], [*found.labels]), Samples())


def _known(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The places of validation's classes among those of training."""
    places = find(names, classes)
    if unknown := sorted({n for n, at in zip(names, places, strict=True) if at is None}):
        raise ValueError(
            f"[data] validation has classes that training has not: {', '.join(unknown)} "
            f"(training has {listed(list(classes))})."
        )
    return [at for at in places if at is not None]


def _open_list(path: Path) -> LabeledImages:
    rows = read_list(path)
    # Without a column for it, folders may tell the split: train/1.png, val/2.png.
    heads = [part_of(os.path.relpath(row.file, path.parent).split(os.sep)[0]) for row in rows]
    is_told = None not in heads and len(set(heads)) > 1
    parts: dict[str, list[Row]] = {TRAIN: [], VAL: [], TEST: []}
    for row, head in zip(rows, heads, strict=True):
        part = part_of(row.split) if row.split is not None else head if is_told else TRAIN
        if part is None:
            raise ValueError(
                f"[data] {path} line {row.line} must have a file, a label and, if there is a "
                f"split, 'train', 'val' or 'test' in it, but got {row.cells}."
            )
        parts[part].append(row)
    if parts[TEST]:
        warn(f"not used of {path}: {len(parts[TEST])} lines of the split 'test'")
    if not parts[TRAIN]:
        raise ValueError(f"[data] {path} must be {KINDS}, but names no image to train on.")
    classes = tuple(in_order({row.label for row in parts[TRAIN]}))
    train, val = (_samples(parts[part], classes) for part in (TRAIN, VAL))
    return LabeledImages(classes, train, val)


def _samples(rows: Sequence[Row], classes: Sequence[str]) -> Samples:
    names = in_order({row.label for row in rows})
    places = dict(zip(names, _known(names, classes), strict=True))
    return Samples([row.file for row in rows], [places[row.label] for row in rows])


def _say_alike(classes: Sequence[str]) -> None:
    """Warn of classes that people may have meant to be one."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(loose(name), []).append(repr(name))
    if groups := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        warn(f"classes that are called almost alike are several: {listed(groups)}")


def _drop_repeats(images: LabeledImages) -> None:
    """Keep each file once; refuse one that is in both parts or has two labels."""
    seen: dict[Hashable, tuple[str, int]] = {}
    repeats = 0
    for part, samples in ((TRAIN, images.train), (VAL, images.val)):
        pairs = list(zip(samples.files, samples.labels, strict=True))
        samples.files, samples.labels = [], []
        for file, label in pairs:
            key = identity(file)
            if key not in seen:
                seen[key] = part, label
                samples.add(file, label)
            elif seen[key][0] != part:
                raise ValueError(f"[data] {file} would be both trained and validated on.")
            elif seen[key][1] != label:
                names = " and ".join(images.classes[at] for at in (seen[key][1], label))
                raise ValueError(f"[data] {file} has two labels: {names}.")
            else:
                repeats += 1
    if repeats:
        warn(f"{repeats} files are named more than once and count once")

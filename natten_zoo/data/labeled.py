"""Finding labeled images for training: folders, tar archives and CSV lists, and their split."""

from __future__ import annotations

import csv
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from lzma import LZMAError
from pathlib import Path

import numpy as np

from ..files import hold, remove
from .image_files import SUFFIXES
from .image_folder import ImageFolder


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
        data: A folder ``CLASS/*``; or with ``train/CLASS/*`` and ``val/CLASS/*``; a tar archive
            of either; or a CSV file with the columns ``file``, ``label`` and, if it says so
            itself, ``split`` (``train`` or ``val``), files relative to the CSV.
        val_fraction: Share of each class held out where the data has no split of its own.
        seed: Decides which images are held out.
        unpack_to: Where a tar archive is unpacked, once for as long as it does not change.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a class is empty, there is one class only, validation has a class that
            training has not, or an archive is damaged or has no images.
    """
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(f"[data] no such file or folder: {path}.")
    if path.is_file() and tarfile.is_tarfile(path):
        path = _unpack(path, unpack_to)
    images = _open_csv(path) if path.is_file() else _open_folder(path)
    if len(images.classes) < 2:
        raise ValueError(
            f"[data] {data} must have at least two classes but has {', '.join(images.classes)}."
        )
    if not images.val.files and val_fraction > 0:
        images.train, images.val = split(images.train, val_fraction, seed)
    return images


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Holds out `fraction` of each class, at least one image where it has two or more."""
    kept, held = Samples(), Samples()
    labels = np.array(samples.labels)
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        for place, row in enumerate(rows):
            (held if place < count else kept).add(samples.files[row], int(label))
    return kept, held


def _open_folder(path: Path) -> LabeledImages:
    first, *held = class_parents(path)
    train = ImageFolder.open(first)
    val = _samples(ImageFolder.open(held[0]), train.classes) if held else Samples()
    return LabeledImages(train.classes, _samples(train, train.classes), val)


def class_parents(data: Path) -> list[Path]:
    """The folders of a data set that hold one folder per class, the one to train on first."""
    if not (data / "train").is_dir():
        return [data]
    names = [name for name in ("val", "validation") if (data / name).is_dir()]
    return [data / name for name in ("train", *names[:1])]


def _samples(folder: ImageFolder, classes: Sequence[str]) -> Samples:
    _check_known(folder.classes, classes)
    return Samples(list(folder.files), folder.labels_for(classes, len(classes)))


def _check_known(names: Sequence[str], classes: Sequence[str]) -> None:
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(
            f"[data] validation has classes that training has not: {', '.join(unknown)}."
        )


def _open_csv(path: Path) -> LabeledImages:
    kinds = "a folder, a tar archive or a CSV file with the columns 'file' and 'label'"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"[data] {path} must be {kinds}, but is no text: {error}.") from error
    if not {"file", "label"} <= set(names):
        raise ValueError(f"[data] {path} must be {kinds}, but the first line is {names}.")
    for line, row in enumerate(rows, 2):
        if not row["file"] or not row["label"] or row.get("split") not in (None, "train", "val"):
            raise ValueError(
                f"[data] {path} line {line} must have a file, a label and, if there is a split, "
                f"'train' or 'val' in it, but got {row}."
            )
    parts = {"train": [r for r in rows if r.get("split") != "val"],
             "val": [r for r in rows if r.get("split") == "val"]}  # fmt: skip
    classes = tuple(sorted({row["label"] for row in parts["train"]}))
    _check_known([row["label"] for row in parts["val"]], classes)
    index = {name: label for label, name in enumerate(classes)}
    samples = {
        name: Samples([path.parent / r["file"] for r in part], [index[r["label"]] for r in part])
        for name, part in parts.items()
    }
    return LabeledImages(classes, samples["train"], samples["val"])


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the images of a tar archive, unless that was done since it last changed."""
    state = archive.stat()
    key = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}"
    target = folder / sha256(key.encode()).hexdigest()[:24]
    # Several processes of a run may come at once; what an earlier one left half is made anew.
    lock = folder.with_name(f".{folder.name}.lock")
    with hold(lock, f"[data] {folder}", wait=True):
        if not target.exists():
            partial = folder / ".partial"
            remove(partial)
            try:
                _extract(archive, partial)
                partial.rename(target)
            finally:
                remove(partial)
    # An archive of one folder, as `tar -c flowers/` makes it, is about what is in that folder.
    inside = [p for p in target.iterdir() if p.is_dir()]
    return inside[0] if len(inside) == 1 and inside[0].name != "train" else target


def _extract(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
            if not members:
                raise ValueError(f"[data] {archive} must hold images but has none.")
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, EOFError, LZMAError, zlib.error) as error:
        raise ValueError(f"[data] {archive} can't be unpacked: {error}.") from error

"""A labeled folder of images, `DATA/CLASS/*`, as torchvision and timm read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .listing import images_in, subfolders
from .names import in_order, plain
from .outputs import outputs
from .splits import find_parts
from .warning import listed, warn


@dataclass(frozen=True)
class ImageFolder:
    """Image files with a class each.

    Classes are the folders' names in sorted order, which for ImageNet's synset numbers
    (`n01440764`, ...) is the order of the published classifiers' outputs; folders that are all
    numbers are sorted as such. Names that differ in outer spaces or in how accents are stored are
    one class.

    Attributes:
        root: The folder that holds one folder per class.
        classes: Names of those folders, in one spelling ([`natten_zoo.data.names.plain`][]).
        files: Every image, class after class.
        labels: Index into `classes` for each of `files`.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """Lists a folder; what only systems make (`__MACOSX`, `@eaDir`, ...) is passed over.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it is a file, holds no folders, or one of them no image.
        """
        root = Path(root)
        if root.is_file():
            raise ValueError(
                f"[ImageFolder] {root} is a file; it must be a folder of one folder per class."
            )
        if not root.is_dir():
            raise FileNotFoundError(f"[ImageFolder] no such folder: {root}.")
        folders: dict[str, list[Path]] = {}
        for folder in subfolders(root):
            folders.setdefault(plain(folder.name), []).append(folder)
        if not folders:
            raise ValueError(f"[ImageFolder] {root} must hold one folder per class but has none.")
        if several := [name for name, same in folders.items() if len(same) > 1]:
            warn(f"several folders of {root} are one class: {listed(several)}")
        classes = in_order(set(folders))
        found = [[file for folder in folders[c] for file in images_in(folder)] for c in classes]
        if empty := [name for name, files in zip(classes, found, strict=True) if not files]:
            raise ValueError(f"[ImageFolder] {root} has no images of {', '.join(empty)}.")
        return cls(
            root=root,
            classes=tuple(classes),
            files=tuple(file for files in found for file in files),
            labels=tuple(label for label, files in enumerate(found) for _ in files),
        )

    def labels_for(
        self, names: Sequence[str] | None, num_classes: int, *, by_order: bool = False
    ) -> list[int]:
        """The labels as outputs of a classifier.

        Where folders are called like classes of the model the names decide, so that a part of the
        classes can be evaluated; then ImageNet's synsets and numbers, which are outputs; see
        [`natten_zoo.data.outputs.outputs`][].

        Args:
            names: Class names of the model in the order of its outputs, if known.
            num_classes: How many outputs it has.
            by_order: The folders in their order are the outputs, whatever they are called.

        Raises:
            ValueError: If folders are called otherwise, or some are and others are not; or they are
                parts of a data set, such as `train` and `val`.
        """
        try:
            place = str(self.root)
            of = outputs(self.classes, names, num_classes, by_order=by_order, place=place)
        except ValueError as error:
            parts = [folder for folders in find_parts(self.root).values() for folder in folders]
            if not parts:
                raise
            raise ValueError(
                f"[ImageFolder] {self.root} holds the parts of a data set; name one of them: "
                f"{listed([str(folder) for folder in sorted(parts)])}."
            ) from error
        return [of[label] for label in self.labels]

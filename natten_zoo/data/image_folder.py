"""A labeled folder of images, ``DATA/CLASS/*``, as torchvision and timm read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .image_files import images_in


@dataclass(frozen=True)
class ImageFolder:
    """Image files with a class each.

    Classes are the folders' names in sorted order, which for ImageNet's synset numbers
    (``n01440764``, ...) is the order of the published classifiers' outputs.

    Attributes:
        root: The folder that holds one folder per class.
        classes: Names of those folders, sorted.
        files: Every image, class after class.
        labels: Index into ``classes`` for each of ``files``.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """Lists a folder.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds no folders, or one of them no image.
        """
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"[ImageFolder] no such folder: {root}.")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise ValueError(f"[ImageFolder] {root} must hold one folder per class but has none.")
        found = [images_in(folder) for folder in folders]
        if empty := [p.name for p, files in zip(folders, found, strict=True) if not files]:
            raise ValueError(f"[ImageFolder] {root} has no images of {', '.join(empty)}.")
        return cls(
            root=root,
            classes=tuple(folder.name for folder in folders),
            files=tuple(file for files in found for file in files),
            labels=tuple(label for label, files in enumerate(found) for _ in files),
        )

    def labels_for(self, names: Sequence[str] | None, num_classes: int) -> list[int]:
        """The labels as outputs of a classifier.

        Where folders are called like classes of the model the names decide, so that a part of the
        classes can be evaluated; a class like ``T-shirt/top`` is known as ``T-shirt_top``, too.
        Where none is, the sorted order decides, if the numbers agree.

        Args:
            names: Class names of the model in the order of its outputs, if known.
            num_classes: How many outputs it has.

        Raises:
            ValueError: If some of the folders are named like classes and others are not, or none
                is and they are not as many.
        """
        outputs = {name: index for index, name in enumerate(names or ())}
        # No folder can have a slash in its name.
        outputs = {name.replace("/", "_"): index for name, index in outputs.items()} | outputs
        unknown = [name for name in self.classes if name not in outputs]
        if not unknown:
            return [outputs[self.classes[label]] for label in self.labels]
        # In sorted order those that are named like classes would count as others.
        if len(unknown) < len(self.classes) or len(unknown) != num_classes:
            raise ValueError(
                f"[ImageFolder] {self.root} must have folders named like the model's classes, or "
                f"{num_classes} of which none is, but got {len(self.classes)}, and with other "
                f"names: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
            )
        return list(self.labels)

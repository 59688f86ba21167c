"""What people call the parts of a data set, and which folders of it are parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .listing import images_beside, images_in, subfolders
from .lists import labeled_list
from .names import plain
from .warning import listed, warn

TRAIN, VAL, TEST = "train", "val", "test"
# Every name of a part, however it is capitalized, alone or with the words below.
PARTS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel"), VAL),
    **dict.fromkeys(("development", "eval", "evaluation", "holdout"), VAL),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
BESIDE = frozenset(("set", "data", "dataset", "images", "image", "imgs", "img", "split", "seg"))


def part_of(name: str) -> str | None:
    """`train`, `val` or `test` if a name means one of them, else `None`.

    Examples:
        >>> [part_of(name) for name in ("Training", "valid", "test_set", "val2017", "dogs")]
        ['train', 'val', 'test', 'val', None]
    """
    words = re.findall(r"[^\W\d_]+", plain(name).casefold())
    words = [
        word.removesuffix("set") if word.removesuffix("set") in PARTS else word for word in words
    ]
    parts = [PARTS[word] for word in words if word in PARTS]
    known = all(word in PARTS or word in BESIDE for word in words)
    return parts[0] if len(parts) == 1 and known else None


@dataclass(frozen=True)
class Layout:
    """The folders of a data set that hold one folder per class, or a list of labels.

    Attributes:
        train: What to train on.
        val: What to validate on, if the data says so itself.
        others: Folders that are neither.
    """

    train: Path
    val: Path | None = None
    others: list[Path] = field(default_factory=list)


def find_layout(data: Path) -> Layout:
    """Where the classes of a data set are.

    A folder that holds a single folder of such, as archives do, is about what is in that.

    Raises:
        ValueError: There are parts, but none to train on, or two.
    """
    parts = find_parts(data)
    if not parts:
        inner = subfolders(data)
        if len(inner) == 1 and not images_beside(data) and holds_classes(inner[0]):
            warn(f"classes are the folders in {inner[0]}")
            return find_layout(inner[0])
        return Layout(data)
    names = [f"{folder.name}/" for folders in parts.values() for folder in folders]
    if len(parts.get(TRAIN, ())) != 1:
        what = "no folder to train on" if TRAIN not in parts else "several folders to train on"
        raise ValueError(f"[data] {data} has {what}, but {listed(names)}.")
    train, val = parts[TRAIN][0], next(iter(parts.get(VAL, ())), None)
    return Layout(train, val, [p for p in subfolders(data) if p not in (train, val)])


def find_parts(data: Path) -> dict[str, list[Path]]:
    """The folders of a data set that are called like its parts and hold classes, by part.

    There are none where `train` is a class as others are, with images of its own.
    """
    parts: dict[str, list[Path]] = {}
    folders = subfolders(data)
    for folder in folders:
        part = part_of(folder.name)
        if part and holds_classes(folder):
            parts.setdefault(part, []).append(folder)
    # Without a part to train on others may be classes that happen to have folders in them.
    if TRAIN in parts or len(folders) == sum(map(len, parts.values())):
        return parts
    return {}


def holds_classes(folder: Path) -> bool:
    """Whether a folder has folders with images, or a list of labels."""
    return any(images_in(inner) for inner in subfolders(folder)) or bool(labeled_list(folder))


def say_unused(data: Path, layout: Layout) -> None:
    """Warn of what there is in a data set and nobody will look at."""
    texts = []
    for folder in layout.others:
        count = len(images_in(folder))
        if count or part_of(folder.name):
            texts.append(f"{folder.name}/ ({count} images)")
    for folder in filter(None, {data, layout.train, layout.val}):
        if not labeled_list(folder) and (count := len(images_beside(folder))):
            texts.append(f"{count} images in {folder} that are in no class's folder")
    if texts:
        warn(f"not used of {data}: {listed(sorted(texts))}")

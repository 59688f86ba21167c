"""What lies in a folder: images and folders, without what only systems put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

SUFFIXES = frozenset(
    [
        *(".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".jpeg", ".jpg"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    ]
)
# Beside hidden names: what macOS, Windows, Linux, Synology, QNAP, NetApp and Python leave.
SYSTEM_NAMES = frozenset(
    [
        *(
            "__macosx",
            "icon\r",
            "network trash folder",
            "temporary items",
            "thevolumesettingsfolder",
        ),
        *("$recycle.bin", "system volume information", "found.000", "config.msi"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "recycler"),
        *("lost+found", "__pycache__", "aquota.user", "aquota.group"),
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot"),
        *("@sharesnap", "@sharebin", "~snapshot"),
    ]
)


def is_system(name: str) -> bool:
    """Whether only a system makes a file or folder of this name, or hides it.

    Examples:
        >>> is_system("__MACOSX"), is_system("._cat.jpg"), is_system("cat.jpg")
        (True, True, False)
    """
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as images' do."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder and of the folders in it, sorted; none twice, none hidden."""
    files: list[Path] = []
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = os.stat(root)
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder around it has no end
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not is_system(name))
        files += [Path(root, n) for n in sorted(names) if not is_system(n) and is_image_name(n)]
    return files


def images_beside(folder: Path) -> list[Path]:
    """The image files of a folder itself, sorted."""
    paths = [p for p in folder.iterdir() if is_image_name(p.name) and not is_system(p.name)]
    return sorted(path for path in paths if not path.is_dir())


def subfolders(folder: Path) -> list[Path]:
    """The folders of a folder, sorted, without those that only systems make."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_system(path.name))


def why_no_file(path: Path) -> str | None:
    """Why a path can't be read as a file, or None: opening a pipe would wait for a writer.

    Raises:
        FileNotFoundError: There is nothing of that name.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")

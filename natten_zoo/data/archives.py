"""Unpacking archives of images, once for as long as they do not change."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from hashlib import sha256
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from ..files import hold, remove
from .listing import is_image_name, is_system, subfolders
from .lists import BESIDE_IMAGES
from .splits import part_of

# What an archive may unpack to: images deflate by little, drawings by much but they are small.
FREE = 1 << 30
EXPANSION = 20


def is_archive(path: Path) -> bool:
    """Whether a file is a tar (also compressed) or zip archive."""
    return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the images of an archive, unless that was done since it last changed.

    Returns:
        Where they lie, in `folder`.

    Raises:
        ValueError: The archive is damaged, has no images, or would write elsewhere.
    """
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
    inside = subfolders(target)
    return inside[0] if len(inside) == 1 and not part_of(inside[0].name) else target


def _extract(archive: Path, folder: Path) -> None:
    budget = _Budget(archive)
    damage = (tarfile.TarError, zipfile.BadZipFile, EOFError, LZMAError, zlib.error, RuntimeError)
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                files = []
                for member in tar:
                    budget.spend(member.size)
                    if member.isfile():
                        files.append(member)
                wanted = _wanted(archive, [member.name for member in files])
                chosen = [member for member in files if member.name in wanted]
                tar.extractall(folder, chosen, filter="data")
        else:
            with zipfile.ZipFile(archive) as package:
                for info in package.infolist():
                    budget.spend(info.file_size)
                package.extractall(folder, _wanted(archive, package.namelist()))
    except damage as error:
        raise ValueError(f"[data] {archive} can't be unpacked: {error}.") from error


class _Budget:
    """An account of bytes that an archive may still unpack to."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.left = FREE + EXPANSION * archive.stat().st_size

    def spend(self, nbytes: int) -> None:
        """Count a member that is about to be unpacked.

        Raises:
            ValueError: It would be too much.
        """
        self.left -= nbytes
        if self.left < 0:
            raise ValueError(
                f"[data] {self.archive} unpacks to more than {EXPANSION} times its size; unpack it "
                "yourself if that is right, and name the folder."
            )


def _wanted(archive: Path, names: Iterable[str]) -> set[str]:
    """Names of the images and of lists beside them, without what only systems make."""
    wanted = set()
    for name in names:
        parts = [part for part in PurePosixPath(name).parts if part not in (".", "..")]
        if name.endswith("/") or not parts or any(map(is_system, parts)):
            continue
        if is_image_name(parts[-1]) or parts[-1] in BESIDE_IMAGES:
            wanted.add(name)
    if not any(map(is_image_name, wanted)):
        raise ValueError(f"[data] {archive} must hold images but has none.")
    return wanted

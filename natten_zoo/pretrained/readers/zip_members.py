"""The directory of a zip archive, checked: its members lie in the file, each at its own place."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

from .errors import CheckpointError

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra
ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Attributes:
        info: What the directory says of it.
        start: Where its bytes begin, after its own header.
    """

    info: zipfile.ZipInfo
    start: int

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + self.info.compress_size


def members(path: str | PathLike[str], file: BinaryIO, nbytes: int) -> list[Member]:
    """Read the directory of an archive, and where each member lies.

    Members that overlap would be read once for each name: a small file could keep a reader busy
    for as long as it likes.

    Args:
        path: The file, for messages.
        file: The same, open.
        nbytes: Its size.

    Raises:
        CheckpointError: It is no archive, damaged, or has members that are encrypted, that overlap
            or that share a name.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except Exception as error:  # whatever a damaged directory makes zipfile raise
        reason = f"its zip archive is truncated or damaged ({error})"
        raise CheckpointError(path, reason) from error
    if len({info.filename for info in infos}) < len(infos):
        raise CheckpointError(path, "its archive has two members of one name")
    found = sorted((_locate(path, file, nbytes, info) for info in infos), key=lambda m: m.start)
    end = 0
    for member in found:
        if member.info.header_offset < end:
            raise CheckpointError(path, f"member {member.info.filename!r} overlaps another")
        end = member.end
    return found


def _locate(
    path: str | PathLike[str], file: BinaryIO, nbytes: int, info: zipfile.ZipInfo
) -> Member:
    name, header = info.filename, info.header_offset
    if info.flag_bits & ENCRYPTED:
        raise CheckpointError(path, f"member {name!r} is encrypted")
    if not 0 <= header <= nbytes - LOCAL_HEADER.size:
        raise CheckpointError(path, f"member {name!r} lies outside the file")
    file.seek(header)
    signature, *lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    member = Member(info, header + LOCAL_HEADER.size + sum(lengths))
    if signature != b"PK\x03\x04" or member.end > nbytes:
        raise CheckpointError(path, f"member {name!r} lies outside the file")
    return member

"""The zip archive around a torch checkpoint: checked before use, storages mapped into memory."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO, Literal, cast

from .errors import CheckpointError

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra
ENCRYPTED = 1

ByteOrder = Literal["little", "big"]


class TorchArchive:
    """A torch zip archive, its members checked and the file mapped read-only.

    Args:
        path: The file.

    Attributes:
        nbytes: Size of the file.
        byteorder: `"little"` or `"big"`, of the machine that wrote the storages.

    Raises:
        CheckpointError: If the file is no zip, is damaged, or has members that `torch.save`
            would not write (compressed, encrypted, duplicated, with paths that lead elsewhere).
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._refuse_other_formats(file.read(512))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.nbytes = len(self._map)
            infos = self._directory(file)
        root = self._common_root([info.filename for info in infos])
        by_name = {info.filename.removeprefix(root): info for info in infos}
        if len(by_name) < len(infos):
            raise CheckpointError(path, "its archive has two members of one name")
        if "data.pkl" not in by_name:
            raise CheckpointError(path, "its archive has no data.pkl: not written by torch.save")
        if "constants.pkl" in by_name:
            raise CheckpointError(path, "it is a TorchScript program; save its state_dict instead")
        self._members = {name: self._locate(info) for name, info in by_name.items()}
        self._intact: set[str] = set()
        self.byteorder = self._read_byteorder()

    def member(self, name: str) -> bytes:
        """The whole of a small member."""
        return bytes(self._bytes(name))

    @contextmanager
    def storage(self, key: str) -> Iterator[memoryview]:
        """The bytes of a storage, mapped; the memory is given back on leaving."""
        yield self._bytes(f"data/{key}")
        start, length = self._members[f"data/{key}"][:2]
        first_page = start - start % mmap.PAGESIZE
        # Pages that stay mapped would count as memory of this process: twice the file at the end.
        self._map.madvise(mmap.MADV_DONTNEED, first_page, start + length - first_page)

    def _bytes(self, name: str) -> memoryview:
        if name not in self._members:
            raise CheckpointError(self.path, f"its archive has no member {name!r}")
        start, length, checksum = self._members[name]
        data = memoryview(self._map)[start : start + length]
        if name not in self._intact and zlib.crc32(data) != checksum:
            raise CheckpointError(self.path, f"member {name!r} is damaged (wrong checksum)")
        self._intact.add(name)
        return data

    def _refuse_other_formats(self, head: bytes) -> None:
        if head.startswith(b"PK\x03\x04"):
            return
        if not head:
            reason = "the file is empty"
        elif head[257:262] == b"ustar":
            reason = "it is a tar archive, torch's format before 0.1.10; re-save it with torch"
        elif head[:1] == b"\x80":
            reason = (
                "it is a bare pickle, torch's format before 1.6, and is not read here; "
                "re-save it with a current torch: torch.save(torch.load(f), f)"
            )
        else:
            reason = f"it is no torch checkpoint (it begins with {head[:8]!r})"
        raise CheckpointError(self.path, reason)

    def _directory(self, file: BinaryIO) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as e:
            reason = f"its zip archive is truncated or damaged ({e})"
            raise CheckpointError(self.path, reason) from e

    def _common_root(self, names: list[str]) -> str:
        """`archive/`, the folder that torch puts every member in."""
        for name in names:
            parts = name.split("/")
            if ".." in parts or "" in parts or "\\" in name or "\0" in name or ":" in name:
                raise CheckpointError(self.path, f"its archive has a member named {name!r}")
        root = names[0].partition("/")[0] + "/" if names else ""
        if not all(name.startswith(root) for name in names):
            raise CheckpointError(self.path, "its archive's members lie in more than one folder")
        return root

    def _locate(self, info: zipfile.ZipInfo) -> tuple[int, int, int]:
        """Where a member's bytes begin, how many there are, and their checksum."""
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(
                self.path, f"member {info.filename!r} is compressed, which torch.save never does"
            )
        if info.flag_bits & ENCRYPTED:
            raise CheckpointError(self.path, f"member {info.filename!r} is encrypted")
        header = info.header_offset
        if not 0 <= header <= self.nbytes - LOCAL_HEADER.size:
            raise CheckpointError(self.path, f"member {info.filename!r} lies outside the file")
        signature, *lengths = LOCAL_HEADER.unpack_from(self._map, header)
        start = header + LOCAL_HEADER.size + sum(lengths)
        if signature != b"PK\x03\x04" or start + info.file_size > self.nbytes:
            raise CheckpointError(self.path, f"member {info.filename!r} lies outside the file")
        return start, info.file_size, info.CRC

    def _read_byteorder(self) -> ByteOrder:
        if "byteorder" not in self._members:
            return "little"
        order = self.member("byteorder").decode("ascii", "replace")
        if order not in ("little", "big"):
            raise CheckpointError(self.path, f"its byte order is {order!r}")
        return cast(ByteOrder, order)

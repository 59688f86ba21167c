"""The zip archive around a torch checkpoint: checked before use, storages mapped into memory."""

from __future__ import annotations

import mmap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Literal, cast

from .errors import CheckpointError
from .zip_members import Member, members

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
            would not write (compressed, encrypted, duplicated or overlapping, with paths that lead
            elsewhere).
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._refuse_other_formats(file.read(512))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.nbytes = len(self._map)
            found = members(path, file, self.nbytes)
        root = self._common_root([member.info.filename for member in found])
        by_name = {member.info.filename.removeprefix(root): member for member in found}
        if "data.pkl" not in by_name:
            raise CheckpointError(path, "its archive has no data.pkl: not written by torch.save")
        if "constants.pkl" in by_name:
            raise CheckpointError(path, "it is a TorchScript program; save its state_dict instead")
        for member in found:
            self._refuse_compressed(member)
        self._members = by_name
        self._intact: set[str] = set()
        self.byteorder = self._read_byteorder()

    def member(self, name: str) -> bytes:
        """The whole of a small member."""
        return bytes(self._bytes(name))

    @contextmanager
    def storage(self, key: str) -> Iterator[memoryview]:
        """The bytes of a storage, mapped; the memory is given back on leaving."""
        yield self._bytes(f"data/{key}")
        member = self._members[f"data/{key}"]
        first_page = member.start - member.start % mmap.PAGESIZE
        # Pages that stay mapped would count as memory of this process: twice the file at the end.
        self._map.madvise(mmap.MADV_DONTNEED, first_page, member.end - first_page)

    def _bytes(self, name: str) -> memoryview:
        if name not in self._members:
            raise CheckpointError(self.path, f"its archive has no member {name!r}")
        member = self._members[name]
        data = memoryview(self._map)[member.start : member.end]
        if name not in self._intact and zlib.crc32(data) != member.info.CRC:
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

    def _common_root(self, names: list[str]) -> str:
        """`archive/`, the folder that torch puts every member in.

        It is called after the file, as that was called when it was saved: a label, which says
        nothing and may be anything ("nat_10:14:29"). What lies in it has names that torch gives.
        """
        root = names[0].partition("/")[0] + "/" if names else ""
        if not all(name.startswith(root) for name in names) or root in ("/", "./", "../"):
            raise CheckpointError(self.path, "its archive's members lie in more than one folder")
        for name in names:
            inner = name.removeprefix(root)
            parts = inner.split("/")
            if ".." in parts or "" in parts or any(mark in inner for mark in "\\\0:"):
                raise CheckpointError(self.path, f"its archive has a member named {name!r}")
        return root

    def _refuse_compressed(self, member: Member) -> None:
        info = member.info
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(
                self.path, f"member {info.filename!r} is compressed, which torch.save never does"
            )

    def _read_byteorder(self) -> ByteOrder:
        if "byteorder" not in self._members:
            return "little"
        order = self.member("byteorder").decode("ascii", "replace")
        if order not in ("little", "big"):
            raise CheckpointError(self.path, f"its byte order is {order!r}")
        return cast(ByteOrder, order)

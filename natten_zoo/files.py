"""Files that appear whole or not at all, locks that end with their process, digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# As `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks a folder without this library.
SUMS = "SHA256SUMS"
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\n]+)")
_CHUNK = 1 << 20
# What a file system answers that has no locks: then only one process may write there.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)


class BusyError(OSError):
    """Another process holds a lock; the message names it."""


def write_whole(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> Path:
    """Write a file beside its place and rename it there; makes its folder.

    A process that is killed leaves at most a hidden `.<name>.partial`, which the next one that
    writes the same file uses. Several may do so at once: one waits for the other.

    Args:
        path: The file; one that was there stays as it is until the new one is complete.
        fill: Writes the content to the open file.

    Raises:
        OSError: It can't be written; the error names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        opened = _open_alone(partial)
    except OSError as error:  # of the file that was asked for, not of ours
        raise type(error)(error.errno, error.strerror, str(path)) from error
    with opened as file:
        try:
            file.truncate(0)
            fill(file)
            file.flush()
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)  # while the lock is held: it is ours
            raise
    return path


def _open_alone(path: Path) -> IO[bytes]:
    """Open a file to write, once no other process does, and it still is the file of that name."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        _lock(file, wait=True)
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass  # the process before has finished and moved it away
        file.close()


@contextmanager
def hold(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock for the length of a `with` block, or of this process, however that ends.

    Args:
        path: The lock file; it stays, and means nothing by itself.
        what: What is locked, for the message.
        wait: Wait for a process that holds it.

    Raises:
        BusyError: Another process holds it, and `wait` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            _lock(file, wait)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(f"{what} is in use by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(file: IO[bytes] | IO[str], wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing there is fine, too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """Write the digests of all files of a folder into its `SHA256SUMS`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    text = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    # Whole or not at all: a folder with half of them would look as if it were complete.
    write_whole(folder / SUMS, lambda file: file.write(text.encode()))


def read_sums(folder: Path) -> dict[str, str]:
    """`{file name: digest}` as `SHA256SUMS` says; empty where there is none.

    Lines of another form, such as those that another program wrote about files in subfolders, say
    nothing of this folder's files.
    """
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return {}
    found = map(_SUM.fullmatch, text.splitlines())
    return {match[2]: match[1] for match in found if match}

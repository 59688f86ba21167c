"""Plain downloads: resumable, atomic, checked. Those of the Hugging Face Hub are in `hub`."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ..files import sha256_of

logger = logging.getLogger("natten_zoo")

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0
PAUSE = 0.25


class DownloadError(OSError):
    """Weights that could not be fetched; the message says from where and what to do."""


@dataclass(frozen=True)
class Hub:
    """How to reach a checkpoint that is not on this machine.

    Attributes:
        revision: Branch, tag or commit of the Hugging Face repository.
        cache_dir: Where downloads are kept; the Hugging Face cache by default.
        local_files_only: Take what was downloaded before and never use the network.
        token: Hugging Face token; the one that is logged in by default.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None

    @property
    def offline(self) -> bool:
        """Whether the network must not be used."""
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE


def download(url: str, target: Path, *, sha256: str | None = None, progress: bool = True) -> Path:
    """Fetch a file to `target`, or leave no `target`.

    What arrived before an interruption is kept beside it and continued by the next call, if the
    server still has the same file.

    Args:
        url: An `http` or `https` address.
        target: Where the file goes; if it is there already, nothing is fetched.
        sha256: The digest that the file must have, where it is known.
        progress: Show a progress bar when standard error is a terminal.

    Returns:
        `target`. Its digest is written beside it as `<target>.sha256`.

    Raises:
        DownloadError: The server cannot be reached or the digest is another.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with open(part, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may be fetching the same file
        if target.exists():
            return target
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch(url, file, part, progress)
                break
            except DownloadError:
                raise
            except (OSError, http.client.HTTPException) as error:
                _give_up(url, error, last=attempt == ATTEMPTS)
                time.sleep(PAUSE * 2**attempt)
        file.flush()
        os.fsync(file.fileno())
        digest = sha256_of(part)
        if sha256 is not None and digest != sha256:
            file.truncate(0)
            raise DownloadError(f"{url}: its SHA-256 is {digest} but should be {sha256}")
        target.with_name(target.name + ".sha256").write_text(f"{digest}  {target.name}\n")
        os.replace(part, target)
    _tag(part).unlink(missing_ok=True)
    return target


def _fetch(url: str, file: IO[bytes], part: Path, progress: bool) -> None:
    """Append to `file` what is missing of it."""
    done = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "natten_zoo"})
    if done and _tag(part).exists():
        request.add_header("Range", f"bytes={done}-")
        # The server sends all of the file if it is not the one that was begun.
        request.add_header("If-Range", _tag(part).read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        file.truncate(0)  # what is there is longer than the file
        raise ConnectionError("the part that was there did not fit the file") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url}: the server sent a web page, not a file")
        if response.status != 206:
            file.truncate(0)
            done = 0
        _remember(response.headers, part)
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        _copy(response, file, done, total, Path(url).name, progress)


def _copy(
    response: IO[bytes], file: IO[bytes], done: int, total: int | None, name: str, progress: bool
) -> None:
    hidden = None if progress else True  # None: shown on a terminal only
    with tqdm(
        total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=hidden
    ) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
    file.flush()
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _remember(headers: http.client.HTTPMessage, part: Path) -> None:
    """Keep what identifies the file that is being fetched, so that it can be continued."""
    tag = headers.get("ETag") or headers.get("Last-Modified")
    if tag and not tag.startswith("W/"):
        _tag(part).write_text(tag)
    else:
        _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _give_up(url: str, error: Exception, *, last: bool) -> None:
    """Raise unless trying again may help: not after a refusal by the server."""
    if isinstance(error, urllib.error.HTTPError):
        hopeless, reason = error.code < 500, f"HTTP {error.code} {error.reason}"
    else:
        hopeless = isinstance(error, urllib.error.URLError)
        reason = str(getattr(error, "reason", error))
    if last or hopeless:
        raise DownloadError(f"{url}: {reason}") from error
    logger.warning("download of %s was interrupted (%s), going on", url, error)

"""From the name of a checkpoint to a file or folder on this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..configs.record import Record
from .download import DownloadError, Hub, download
from .registry import get_record, records

logger = logging.getLogger("natten_zoo")

PACKAGE = Path(__file__).resolve().parents[1]
WHAT_TO_DO = (
    "With no network, give the path of a file or folder that you have "
    "(NAT.from_pretrained('nat_mini.pth'), or a folder that `natten-zoo convert` wrote), or fetch "
    "the model once on a machine that has one and copy its cache"
)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies and what the registry knows of it.

    Attributes:
        path: A local file or folder.
        record: The record of a published model, if it was asked for by its name.
    """

    path: Path
    record: Record | None = None


def locate(name: str | os.PathLike[str], options: Hub | None = None) -> Source:
    """Find a checkpoint, downloading it where need be.

    Args:
        name: In this order: a registered name (`"nat_mini"`), the path of a file or folder, a
            registered or any other Hugging Face repository (`"shi-labs/nat-mini-in1k-224"`), or
            the `https` address of a file.
        options: How to reach it.

    Raises:
        FileNotFoundError: `name` is a path with nothing at it.
        ValueError: `name` is nothing known; the message lists the nearest names.
        DownloadError: It cannot be downloaded; the message lists what was tried.
    """
    options = options or Hub()
    text = os.fspath(name)
    if text in records():
        return _published(get_record(text), options)
    if Path(text).expanduser().exists():
        return Source(Path(text).expanduser())
    if re.match(r"https?://", text):
        return Source(_from_url(text, None, options))
    if not isinstance(name, str) or Path(text).suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise FileNotFoundError(f"{text}: no such file or folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith("."):
        known = [record for record in records().values() if record.hub == text]
        return Source(_tried([(text, partial(_from_hub, text, options))]), *known[:1])
    if text.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{text}: no such file or folder")
    return _published(get_record(text), options)  # raises, with the nearest names


def _published(record: Record, options: Hub) -> Source:
    """Get a registered checkpoint from the first place that has it."""
    if record.file:
        return Source(PACKAGE / record.file, record)
    places: list[tuple[str, Callable[[], Path]]] = []
    if record.hub:
        places.append((record.hub, partial(_from_hub, record.hub, options)))
    if options.revision is None:  # which only a Hugging Face repository has
        for url in filter(None, (record.url, record.mirror)):
            places.append((url, partial(_from_url, url, record.sha256, options)))
    if not places:
        raise ValueError(f"[from_pretrained] no weights of {record.name!r} are published.")
    return Source(_tried(places), record)


def _tried(places: list[tuple[str, Callable[[], Path]]]) -> Path:
    """The first place that works; every failure is told."""
    failures = []
    for name, fetch in places:
        try:
            return fetch()
        except DownloadError as error:
            failures.append(f"{name}: {_first_line(error, name)}")
            if name != places[-1][0]:
                logger.warning("no weights from %s, trying the next place", failures[-1])
    raise DownloadError(
        "the weights could not be downloaded. Tried:\n  "
        + "\n  ".join(failures)
        + f"\n{WHAT_TO_DO}."
    )


def _first_line(error: Exception, name: str) -> str:
    return str(error).strip().partition("\n")[0].removeprefix(f"{name}: ")


def _from_url(url: str, sha256: str | None, options: Hub) -> Path:
    """A file at a plain address, kept in a folder of the cache named after the address."""
    from huggingface_hub import constants

    cache = Path(options.cache_dir or constants.HF_HOME).expanduser() / "natten_zoo"
    target = cache / hashlib.sha256(url.encode()).hexdigest()[:16] / Path(url).name
    if options.offline and not target.exists():
        raise DownloadError(f"{url}: not downloaded before, and the network is not to be used")
    return download(url, target, sha256=sha256)


def _from_hub(repo: str, options: Hub) -> Path:
    """The snapshot folder of a repository, with its configuration and its weights fetched."""
    from .hub import snapshot  # half a second to import, which a file of this machine needs not

    return snapshot(repo, options)

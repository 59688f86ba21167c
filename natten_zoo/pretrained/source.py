"""From the name of a checkpoint to a file or folder on this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub as hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from ..configs.record import Record
from ..files import sha256_of
from .download import DownloadError, download
from .readers.reader import CONFIG, PREPROCESSOR, WEIGHT_FILES, read_json
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
        return self.local_files_only or constants.HF_HUB_OFFLINE


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
    cache = Path(options.cache_dir or constants.HF_HOME).expanduser() / "natten_zoo"
    target = cache / hashlib.sha256(url.encode()).hexdigest()[:16] / Path(url).name
    if options.offline and not target.exists():
        raise DownloadError(f"{url}: not downloaded before, and the network is not to be used")
    return download(url, target, sha256=sha256)


def _from_hub(repo: str, options: Hub) -> Path:
    """The snapshot folder of a repository, with its configuration and its weights fetched."""
    if not options.offline and not _reachable(repo, options):
        options = replace(options, local_files_only=True)
    try:
        for name in (CONFIG, PREPROCESSOR):
            _optional_file(repo, name, options)
        for name in WEIGHT_FILES:
            path = _optional_file(repo, name, options)
            if path is not None:
                for shard in _shards(path):
                    _hub_file(repo, shard, options)
                return path.parent
    except DownloadError:
        raise
    except Exception as error:  # whatever the HTTP library of the day raises
        raise DownloadError(f"{repo}: {_explained(error)}") from error
    where = "what was downloaded before" if options.offline else "the repository"
    raise DownloadError(f"{repo}: {where} has none of {', '.join(WEIGHT_FILES)}")


def _reachable(repo: str, options: Hub) -> bool:
    """Whether the Hub answers, whatever it says: its library would try for 23 s per file."""
    try:
        hub.get_hf_file_metadata(
            hub.hf_hub_url(repo, CONFIG, revision=options.revision), token=options.token
        )
    except (HfHubHTTPError, EntryNotFoundError):
        return True
    except Exception:  # whatever the HTTP library of the day raises
        return False
    return True


def _explained(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        return "not downloaded before, and the Hub is not reachable or not to be used"
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"


def _shards(index: Path) -> list[str]:
    """The files that an index names; none for a file that is no index."""
    if not index.name.endswith(".index.json"):
        return []
    return sorted(set(map(str, (read_json(index).get("weight_map") or {}).values())))


def _optional_file(repo: str, name: str, options: Hub) -> Path | None:
    """A file of a repository; None if the repository has none of that name."""
    try:
        return _hub_file(repo, name, options)
    except LocalEntryNotFoundError:
        if _missing_from_snapshot(repo, name, options):
            return None
        raise
    except EntryNotFoundError:
        return None


def _missing_from_snapshot(repo: str, name: str, options: Hub) -> bool:
    """Whether the cache has other files of this revision, so that only this one is missing."""
    keywords: dict[str, Any] = {"cache_dir": options.cache_dir, "revision": options.revision}
    return any(
        isinstance(hub.try_to_load_from_cache(repo, other, **keywords), str)
        for other in (CONFIG, *WEIGHT_FILES)
        if other != name
    )


def _hub_file(repo: str, name: str, options: Hub) -> Path:
    keywords: dict[str, Any] = {"cache_dir": options.cache_dir, "revision": options.revision}
    cached = hub.try_to_load_from_cache(repo, name, **keywords)
    path = Path(
        hub.hf_hub_download(
            repo,
            name,
            local_files_only=options.offline,
            token=options.token,
            library_name="natten_zoo",
            **keywords,
        )
    )
    if not isinstance(cached, str):
        _check_digest(path)
    return path


def _check_digest(path: Path) -> None:
    """Compare a large file with its name in the Hub's cache, which is the SHA-256 it should have.

    The Hub's library compares sizes only.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise DownloadError(f"{path.name}: its SHA-256 is not {blob.name}; it was deleted")

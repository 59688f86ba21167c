"""Repositories of the Hugging Face Hub, as far as loading needs them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub as hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from ..files import sha256_of
from .download import DownloadError, Hub
from .readers.reader import CONFIG, PREPROCESSOR, WEIGHT_FILES, read_json


def snapshot(repo: str, options: Hub) -> Path:
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

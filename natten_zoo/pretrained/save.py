"""Getting models out: a folder on the disk, a repository on the Hub."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..configs.tasks import find_task
from ..data.preprocess import Preprocess
from ..version import __version__
from .card import model_card
from .folder import README, write_folder
from .protocol import Loadable
from .quantize import KEY, quantization
from .readers.errors import CheckpointError
from .readers.reader import CONFIG, PREPROCESSOR, WEIGHTS
from .readers.safetensors_file import read_safetensors

# What a record says of the place it was read from, not of the model.
NOT_SAVED = ("architecture", "model", "file", "sha256")


def save_pretrained(
    model: Loadable,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a folder that `from_pretrained` loads, bit for bit.

    The folder gets `config.json`, `model.safetensors` and, where it is known how images are
    prepared, `preprocessor_config.json`; and the digests of all of them, `SHA256SUMS`, which
    `from_pretrained` holds the weights against. It appears when all of it is written and read back.

    Args:
        model: The model; its `record` is saved with it.
        path: The folder.
        overwrite: Replace a model that is there. A folder with other files is refused all the
            same.
        provenance: What to write into `config.json` about where the weights came from.

    Returns:
        The folder.

    Raises:
        FileExistsError: Something is at `path` already.
        CheckpointError: The disk gave back something else than what was written.

    Examples:
        >>> import tempfile
        >>> from natten_zoo import create_model
        >>> folder = create_model("nat_pico_fashion").save_pretrained(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.iterdir())
        ['SHA256SUMS', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    target = Path(path).expanduser()
    write_folder(target, lambda folder: _write(folder, model, provenance), overwrite)
    return target


def push_to_hub(
    model: Loadable,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a model with a model card; the repository is made if there is none.

    Args:
        model: The model.
        repo_id: `"user/name"`.
        private: Whether a new repository is private.
        token: Hugging Face token; the one that is logged in by default.
        revision: Branch to commit to.
        commit_message: Message of the commit.
        create_pr: Open a pull request instead of committing.

    Returns:
        The address of the commit.
    """
    import huggingface_hub as hub  # half a second, for who saves a model on this machine

    api = hub.HfApi(token=token, library_name="natten_zoo", library_version=__version__)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as temporary:
        folder = save_pretrained(model, Path(temporary) / "model")
        (folder / README).write_text(str(model_card(model, repo_id)), encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__} with natten_zoo",
            create_pr=create_pr,
        )
    return str(commit.commit_url)


def _write(folder: Path, model: Loadable, provenance: Mapping[str, Any] | None) -> None:
    record = model.current_record()
    config: dict[str, Any] = {
        "architecture": type(model).__name__,
        "config": model.config.to_dict(),
        "natten_zoo_version": __version__,
    }
    if record is not None:
        facts = dataclasses.asdict(record)
        config["record"] = {
            key: value for key, value in facts.items() if key not in NOT_SAVED and value is not None
        }
        if record.input_size and find_task(model.TASK).of_pictures:
            _write_json(folder / PREPROCESSOR, Preprocess.from_record(record).to_config())
    if settings := quantization(model):
        config[KEY] = config[f"{KEY}_config"] = settings
    if provenance:
        config["converted_from"] = dict(provenance)
    _write_json(folder / CONFIG, config)
    _write_weights(folder / WEIGHTS, dict(tree_flatten(model.parameters())))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, weights: dict[str, mx.array]) -> None:
    """Write and read back: a full disk does not always raise."""
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    written, _ = read_safetensors(path)
    for name, value in weights.items():
        back = written.pop(name, None)
        if back is None or back.dtype != value.dtype or not _same_bits(back, value):
            raise CheckpointError(path, f"weight {name!r} was not written as it is")


def _same_bits(a: mx.array, b: mx.array) -> bool:
    if a.shape != b.shape:
        return False
    integers = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[a.itemsize]
    return bool(mx.array_equal(a.view(integers), b.view(integers)))

from __future__ import annotations

import resource
import signal
from pathlib import Path

import mlx.core as mx
import pytest

from natten_zoo.training.checkpoint import RunError, write_folder


def fill(text: str):
    return lambda folder: (folder / "file").write_text(text) and None


def read(folder: Path) -> str:
    return (folder / "file").read_text()


def test_the_folder_before_is_kept(tmp_path):
    last, previous = tmp_path / "last", tmp_path / "previous"
    for text in "abc":
        write_folder(last, fill(text), keep=previous)
    assert read(last) == "c" and read(previous) == "b"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "previous"]


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    last = tmp_path / "last"
    write_folder(last, fill("good"))

    def broken(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(RunError, match="could not be written: No space left on device"):
        write_folder(last, broken)
    assert read(last) == "good" and [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_disk_that_is_full_for_arrays(tmp_path):
    """A limit on the size of files stands for the full disk: the same write fails."""
    last = tmp_path / "last"
    write_folder(last, fill("good"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(RunError, match="could not be written"):
            write_folder(last, lambda folder: mx.save_safetensors(
                str(folder / "a.safetensors"), {"a": mx.zeros(10_000)}))  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(last) == "good"


def test_a_failed_write_over_a_failed_rename_keeps_the_one_before(tmp_path, monkeypatch):
    last, previous = tmp_path / "last", tmp_path / "previous"
    write_folder(last, fill("a"), keep=previous)
    write_folder(last, fill("b"), keep=previous)
    rename = Path.rename

    def fail(self, target):
        if self.name == ".last.partial":
            raise OSError("Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match="Input/output error"):
        write_folder(last, fill("c"), keep=previous)
    assert read(previous) == "b" and read(tmp_path / ".previous.old") == "a"

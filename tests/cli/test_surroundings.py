"""What surrounds a command: temporary folder, standard streams, memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import natten_zoo

SAMPLE = next(Path(natten_zoo.__file__).parent.joinpath("assets", "samples").glob("*.png"))


def zoo(*arguments: str, closed: tuple[int, ...] = (), memory: int = 0, **environment: str):
    def prepare() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        for descriptor in closed:
            os.close(descriptor)

    return subprocess.run(
        [sys.executable, "-m", "natten_zoo", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=None if 1 in closed else subprocess.PIPE,
        stderr=None if 2 in closed else subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


@pytest.mark.parametrize("folder", ["/nonexistent", "/proc"])
def test_a_temporary_folder_that_cannot_be_written_is_named(folder):
    # MLX compiles GELU there; the native tier has its own, and needs no folder.
    run = zoo("classify", str(SAMPLE), TMPDIR=folder, NATTEN_BACKEND="pure")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert f"the temporary folder, {folder}: set TMPDIR to one that can be written" in run.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_are_no_error(closed):
    assert zoo("classify", str(SAMPLE), closed=closed).returncode == 0


def test_too_little_memory_is_an_error_in_words():
    # Not with OpenBLAS, which spins for ever where it gets no memory for its buffers.
    run = zoo("classify", str(SAMPLE), memory=400 << 20, LD_PRELOAD="")
    assert run.returncode != 0 or "Bag" in run.stdout

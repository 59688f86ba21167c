"""A real `natten-zoo finetune` that dies at its n-th change of the file system, and damage.

Processes are forked from a server that has imported everything and computed nothing: a run costs
what it computes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from natten_zoo.training.checkpoint import LAST, PLACES, PREVIOUS

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
PRELOADED = ["natten_zoo.cli.finetune", "natten_zoo.training", "mlx.data", "tests.training.kills"]


@dataclass(frozen=True)
class Kill:
    """When a process dies.

    At its n-th change of the file system (a file opened to write, a folder made, a rename, a
    removal, a sync), or, if `torn` is a number, from there on in the first write of any file
    beyond so many bytes, which is cut there.
    """

    event: int
    torn: int | None = None

    def arm(self) -> None:
        """Have this process die so."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            seen += 1
            if seen == self.event and self.torn is None:
                os.kill(os.getpid(), signal.SIGKILL)
            elif seen == self.event:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.torn, self.torn))

        def hook(name: str, args: tuple) -> None:
            if name in CHANGES and (name != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
                count()

        sync = os.fsync
        os.fsync = lambda handle: (count(), sync(handle))[1]
        sys.addaudithook(hook)


def finetune(recipe: Path, log: Path, kill: Kill | None = None) -> int:
    """The exit status of a run in a process of its own, or minus the signal that ended it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_finetune, args=(recipe, log, kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _finetune(recipe: Path, log: Path, kill: Kill | None) -> None:
    from natten_zoo.cli import main

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if kill:
        kill.arm()
    sys.exit(main(["finetune", "-c", str(recipe)]))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size + 1))


def blank(path: Path, draw: random.Random) -> None:
    """As long as before, but of zeros from somewhere on: what a power failure leaves."""
    content = path.read_bytes()
    start = draw.randrange(len(content) + 1)
    path.write_bytes(content[:start].ljust(len(content), b"\0"))


def lose(path: Path, draw: random.Random) -> None:
    path.unlink()


FILE_DAMAGE: list[Callable[[Path, random.Random], None]] = [flip, cut, blank, lose]


def damage(out: Path, draw: random.Random) -> str:
    """Damage one thing in a run's folder; what it was, in words."""
    folders = [out / name for name in (*PLACES, "best") if (out / name).is_dir()]
    folder = draw.choice(folders) if folders else None
    files = sorted(folder.iterdir()) if folder else []
    kind = draw.choices(["file", "folder", "name", "text"], [6, 1, 2, 1])[0]
    if kind == "text":
        files = [path for path in (out / "recipe.yaml", out / "metrics.jsonl") if path.exists()]
    if kind in ("file", "text") and files:
        path, harm = draw.choice(files), draw.choice(FILE_DAMAGE)
        harm(path, draw)
        return f"damage {path.relative_to(out)}: {harm.__name__}"
    if kind == "folder" and folder:
        shutil.rmtree(folder)
        if draw.random() < 0.5:
            folder.write_text("not a folder")
            return f"damage {folder.name}: now a file"
        return f"damage {folder.name}: lost"
    if kind == "name":  # renamed, as by a kill between two renames
        pairs = [(LAST, PREVIOUS), (LAST, ".last.partial"), (PREVIOUS, ".previous.old"),
                 (PREVIOUS, LAST)]  # fmt: skip
        free = [(a, b) for a, b in pairs if (out / a).exists() and not (out / b).exists()]
        if free:
            old, new = draw.choice(free)
            (out / old).rename(out / new)
            return f"rename {old} to {new}"
    return "no damage"

"""Times the rows of `gpu_check.py --only bench --shapes nat` for several checkouts, in turns.

    git worktree add before v1.0
    python scripts/gpu_turns.py now=. before=before --dtypes float16 --out turns.json

Each checkout computes in a process of its own, and they take turns round by round: what slows the
machine down for a while slows them all. A row has medians of the rounds, in milliseconds of a call,
and the last line how many times the last checkout's the others take (geometric means of all rows).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = ("forward", "both")
ROUND = 0.015  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", help="name=folder")
    parser.add_argument("--dtypes", nargs="*", default=["float16", "bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=13)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if not args.checkouts:
        parser.error("no checkout is given")
    folders = dict(one.split("=", 1) for one in args.checkouts)
    contestants = {name: Contestant(folder) for name, folder in folders.items()}
    rows = []
    shapes = min(one.ask("shapes") for one in contestants.values())
    for dtype in args.dtypes:
        for n in range(shapes):
            rows.append(row(contestants, n, dtype, args.rounds))
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))
    last = list(folders)[-1]
    for step in STEPS:
        print(step, {name: round(mean_ratio(rows, step, name, last), 3) for name in folders})


class Contestant:
    """A process that computes with a checkout's kernels."""

    def __init__(self, folder: str) -> None:
        command = [sys.executable, __file__, "--serve", folder]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, *question: Any) -> Any:
        """What it answers, one line of JSON for another."""
        into, out = self.process.stdin, self.process.stdout
        assert into and out
        print(json.dumps(question), file=into, flush=True)
        return json.loads(out.readline())


def row(contestants: dict[str, Contestant], n: int, dtype: str, rounds: int) -> dict[str, Any]:
    """The medians of all contestants, of one shape."""
    for one in contestants.values():
        name = one.ask("shape", n, dtype)
    found: dict[str, Any] = {"shape": name, "dtype": dtype}
    for step in STEPS:
        slowest = max(one.ask(step, 5) for one in contestants.values())
        calls = max(2, min(100, int(1e3 * ROUND / slowest)))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds):
            order = list(contestants)[:: 1 if turn % 2 else -1]
            for name in order:
                times[name].append(contestants[name].ask(step, calls))
        found[step] = {name: round(statistics.median(all_), 4) for name, all_ in times.items()}
    return found


def mean_ratio(rows: list[dict[str, Any]], step: str, name: str, to: str) -> float:
    """The geometric mean of a contestant's times over another's."""
    return math.exp(statistics.fmean(math.log(r[step][name] / r[step][to]) for r in rows))


def serve(folder: str) -> None:
    """Answers questions with what the checkout in `folder` takes."""
    os.chdir(folder)
    sys.path[:0] = [os.getcwd(), str(Path("scripts").resolve())]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not answer
    import gpu_check
    import mlx.core as mx

    shapes = gpu_check.SHAPES
    if isinstance(shapes, dict):
        shapes = shapes["nat"]
    steps: dict[str, Any] = {}
    for question in sys.stdin:
        what, *rest = json.loads(question)
        if what == "shapes":
            answer: Any = len(shapes)
        elif what == "shape":
            steps = gpu_check.ours(shapes[rest[0]], rest[1])
            for step in steps.values():
                mx.eval(step(0), step(1))
            answer = shapes[rest[0]][0]
        else:
            start = time.perf_counter()
            mx.eval([steps[what](i % gpu_check.SETS) for i in range(rest[0])])
            mx.synchronize()
            answer = (time.perf_counter() - start) * 1e3 / rest[0]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

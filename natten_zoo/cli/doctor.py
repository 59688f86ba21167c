"""Check this machine: which tiers run, whether they are right, and how fast.

Every operator tier that runs here is held against a reference on the CPU, in float32: a sample of
problems, forward and gradients, and the packaged model. It is timed beside the pure tier and MLX's
own attention. The report is made to be attached to an issue (-o doctor.json); it holds the names of
the device and of the versions, and nothing else of the machine.

Exit status: 0 all is well, 1 a tier is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arguments import positive
from ._text import table

if TYPE_CHECKING:
    from tqdm import tqdm

Report = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--quick", action="store_true", help="float32 only, and no timing")
    parser.add_argument(
        "--rounds", type=positive, default=10, help="rounds per timing (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write it as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Examines, and prints the report."""
    report = examine(args.quick, args.rounds)
    text = json.dumps(report, indent=2) + "\n"
    if args.out:
        from ..files import write_whole

        write_whole(args.out, lambda file: file.write(text.encode()))
    print(text if args.json else in_words(report), end="")
    return int(not report["well"])


def examine(quick: bool, rounds: int) -> Report:
    """All that is measured, as plain data."""
    from tqdm import tqdm

    from ..ops import gpu
    from . import _diagnosis as diagnosis
    from . import _expected as expected

    start = time.perf_counter()
    tiers = diagnosis.tiers()
    judged = [name for name, verdict in tiers.items() if verdict == "runs" and name != "pure"]
    dtypes = ["float32"] if quick else list(diagnosis.TOLERANCE)
    report: Report = {
        "machine": diagnosis.machine(),
        "tiers": tiers,
        "float32 product error": diagnosis.product_error(),
        "parity": [],
        "milliseconds": [],
        "milliseconds, small": [],
    }
    steps = len(dtypes) * len(diagnosis.SAMPLES) * len(judged)
    for tier in [] if quick else judged:
        steps += len(diagnosis.TIMED) * len(diagnosis.ways(tier)) + len(diagnosis.PUBLISHED)
    with tqdm(total=steps, file=sys.stderr, disable=None, leave=False) as bar:
        for tier in judged:
            parity = (
                diagnosis.compare(tier, name, dtype)
                for dtype in dtypes
                for name in diagnosis.SAMPLES
            )
            report["parity"] += counted(bar, parity)
            report["parity"].append(diagnosis.compare_model(tier))
            if not quick:
                report["milliseconds"] += counted(bar, diagnosis.timings(tier, rounds))
                report["milliseconds, small"] += counted(bar, diagnosis.small_timings(tier, rounds))
    if gpu.NAME in judged:  # by now it is known who multiplies right
        report["cores"] = gpu.cores()
    report["well"] = all(row["right"] for row in report["parity"])
    report["seconds"] = time.perf_counter() - start
    if not quick and "fast_metal" in judged:
        report["seconds, an M1 by the model, at most"] = expected.seconds(rounds)
    return report


def counted(bar: tqdm, rows: Iterable[Report]) -> Iterator[Report]:
    """The rows, each a step of the bar."""
    for row in rows:
        bar.update()
        yield row


def in_words(report: Report) -> str:
    """The report for people."""
    facts = [f"{name:12} {value}" for name, value in report["machine"].items()]
    error = report["float32 product error"]
    facts.append(
        f"{'float32':12} MLX's own matrix product is off by {error:.0e} on this device"
        + (", as with TF32 (MLX_ENABLE_TF32=0 avoids that)" if error > 1e-5 else "")
    )
    parts = ["\n".join(facts)]
    parts.append("\n".join(f"{name:12} {verdict}" for name, verdict in report["tiers"].items()))
    if cores := report.get("cores"):
        parts.append("\n".join(f"core {name:7} {verdict}" for name, verdict in cores.items()))
    if report["parity"]:
        rows = [[r["tier"], r["problem"], r["dtype"], _verdict(r)] for r in report["parity"]]
        header = ["tier", "problem", "dtype", "largest error"]
        parts.append(
            "Against the pure tier on the CPU: output and gradients\n" + table(header, rows, "<<<<")
        )
    else:
        parts.append("Only the pure tier runs here: nothing to hold it against.")
    for tier in dict.fromkeys(row["tier"] for row in report["milliseconds"]):
        timed = [row for row in report["milliseconds"] if row["tier"] == tier]
        parts.append(
            "Milliseconds, forward / with gradients: "
            f"float16, batch {timed[0]['batch']}\n{_times(timed)}"
        )
    if small := report["milliseconds, small"]:
        published = "natten-mlx, M4 Max"
        lines = [[r["tier"], r["problem"], _pair(r), r[published]] for r in small]
        header = ["tier", "problem", "here", f"{published}: forward, backward"]
        parts.append(
            "Milliseconds, forward / with gradients: float32, batch 1, 4 heads of 32\n"
            + table(header, lines, "<<>>")
        )
    parts += [_building(report["parity"]), _duration(report)]
    well = "All well." if report["well"] else "Something is wrong: please open an issue with this."
    return "\n\n".join([*filter(None, parts), well]) + "\n"


def _building(rows: list[Report]) -> str:
    """How many kernels were built, and how long each took."""
    built = sum(row.get("built", 0) for row in rows)
    seconds = sum(row.get("build seconds", 0.0) for row in rows)
    return (
        f"{built} kernels built in {seconds:.1f} s: the first call of each waits." if built else ""
    )


def _duration(report: Report) -> str:
    bound = report.get("seconds, an M1 by the model, at most")
    model = "" if bound is None else f"; an M1 should take {bound:.0f} s at most, by the model"
    return f"This took {report['seconds']:.0f} s{model}."


def _verdict(row: Report) -> str:
    if "failure" in row:
        return f"WRONG: {row['failure']}"
    return f"{'ok' if row['right'] else 'WRONG'} {row['error']:.1e}"


def _times(rows: list[Report]) -> str:
    """A line a problem, a column a way to compute it."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    found = {(row["problem"], row["way"]): _pair(row) for row in rows}
    problems = dict.fromkeys(row["problem"] for row in rows)
    lines = [[name, *(found.get((name, way), "") for way in ways)] for name in problems]
    return table(["problem", *ways], lines, "<" + ">" * len(ways))


def _pair(row: Report) -> str:
    return f"{row['forward']:.2f} / {row['both']:.2f}"

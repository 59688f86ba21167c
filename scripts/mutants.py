#!/usr/bin/env python3
"""Plant every small fault in the compiled tier or the kernels, one at a time: do the tests see it?

    python scripts/mutants.py native --sample 60 --seed 0
    python scripts/mutants.py metal --jobs 8 --results build/metal.jsonl

A fault turns a comparison, a logical operator, a minimum or a constant into its neighbor, or takes
a barrier away. `native` compiles ops/native/core with it and holds random problems against float64
(tests/ops/extremes.py); what passes runs once more under the address and undefined-behaviour
sanitizers (ops/native/driver.cpp). `metal` runs kernels in the emulator (tests/metal_emulator),
whose reports count, too; most faults share one build (tests/metal_emulator/planted.py). What
nothing sees is listed, but for those of which the compiler makes the same code and those that
tests/mutants.txt explains. The exit status is 1 if one is left over.

All of them take hours of a core. Each result is written to the file that `--results` names, and
what stands in it is not run again: an interrupted run goes on, and after a change only lines that
are new are run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
EXPLAINED = ROOT / "tests" / "mutants.txt"
SAME = "the same code"  # what a fault is that the compiler makes nothing of

NEIGHBORS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
    "min": "max", "max": "min",
}  # fmt: skip
OPERATOR = r"(?<= )(?:[<>]=?|[!=]=|&&|\|\|)(?= )"
EXTREMUM = r"(?<=na_)(?:min|max)(?=\()|(?<=std::)(?:min|max)(?=\()"
NUMBER = r"(?<![\w.#])(?:\d+\.\d*(?:e[+-]?\d+)?f?|\d+(?:e[+-]?\d+f?)?)(?![\w.])"
BARRIER = r"\b\w*barrier\([^;]*\);"
PLACES = re.compile(f"{BARRIER}|{OPERATOR}|{EXTREMUM}|{NUMBER}")
# What is no code, or is the compiler's own business.
SILENT = re.compile(r'//[^\n]*|"[^"\n]*"|/\*.*?\*/|#(?:include|pragma|if|ifdef|ifndef|elif)[^\n]*'
                    r"|static_assert\([^;]*;|template <[^\n]*>\n", re.S)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one place in a file."""

    file: str
    start: int
    before: str
    after: str
    line: str

    def __str__(self) -> str:
        return f"{self.file}: {self.before!r} -> {self.after!r} in {self.line}"

    @property
    def key(self) -> str:
        """What tests/mutants.txt calls it: no line numbers, which change."""
        return f"{self.file} | {self.before} -> {self.after} | {self.line}"

    def of(self, text: str) -> str:
        """The text of the file with the change."""
        return text[: self.start] + self.after + text[self.start + len(self.before) :]


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """All mutants of a file."""
    silent = [match.span() for match in SILENT.finditer(text)]
    for match in PLACES.finditer(text):
        start, before = match.start(), match[0]
        if any(a <= start < b for a, b in silent):
            continue
        line = text[text.rfind("\n", 0, start) + 1 : text.find("\n", start)].strip()
        yield Mutant(file, start, before, _neighbor(before), line)


def _neighbor(before: str) -> str:
    if before in NEIGHBORS:
        return NEIGHBORS[before]
    if "barrier" in before:
        return ";"
    if before.isdigit():
        return str(int(before) + 1)
    return before.replace("0", "1", 1) if float(before.rstrip("f")) == 0 else f"(2 * {before})"


class Native:
    """A copy of the compiled tier that is compiled anew for each mutant."""

    FOLDER = ROOT / "ops" / "native" / "core"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ops/native", "metal"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
        rules = folder / "ops" / "native" / "CMakeLists.txt"
        rules.write_text(rules.read_text().replace("-O3", "-O1"))
        self.sound = self._compile().read_bytes()

    @classmethod
    def files(cls) -> list[Path]:
        return sorted(path for path in cls.FOLDER.iterdir() if path.stem != "peak")  # a stopwatch

    @staticmethod
    def together(todo: dict[str, Mutant], jobs: int) -> Iterator[tuple[str, str]]:
        """None can be judged in one build."""
        yield from ()

    def _compile(self, target: str = "_ext", *options: str) -> Path:
        """A target of the build in a folder of its own; the file that it makes."""
        from scripts.build_native import _program

        source, build = self.folder / "ops" / "native", self.folder / target
        cmake, ninja = _program("cmake") or "cmake", _program("ninja") or "ninja"
        if not build.exists():
            configure = [cmake, "-S", str(source), "-B", str(build), "-G", "Ninja", *options,
                         f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}",
                         "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                         f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}"]  # fmt: skip
            subprocess.run(configure, check=True, capture_output=True)
        make = [cmake, "--build", str(build), "--target", target, "-j1"]
        subprocess.run(make, check=True, capture_output=True)
        return next(path for path in build.glob(f"{target}*") if path.suffix in ("", ".so"))

    def caught(self, mutant: Mutant | None) -> str:
        """What gives a mutant away; empty if nothing does."""
        path = self.folder / "ops" / "native" / "core" / (mutant.file if mutant else "task.h")
        original = path.read_text()
        try:
            path.write_text(mutant.of(original) if mutant else original)
            return self._judged(mutant is not None)
        except subprocess.CalledProcessError:
            return "it does not compile"
        finally:
            path.write_text(original)

    def _judged(self, is_mutant: bool) -> str:
        extension = self._compile()
        if is_mutant and extension.read_bytes() == self.sound:
            return SAME
        found = ask("-m", "tests.ops.native.judge", str(extension), seconds=90)
        if found:
            return found
        sanitized = "-DNATTEN_ZOO_SANITIZE=address,undefined"
        driver = self._compile(
            "natten_driver", sanitized, "-DNATTEN_ZOO_DRIVER=ON", "-DNATTEN_ZOO_EXTENSION=OFF"
        )
        # What nobody has written is no number.
        watch = "detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255"
        variables = {"ASAN_OPTIONS": watch, "NATTEN_ZOO_THREADS": "3", "LD_PRELOAD": ""}
        return answer([str(driver), "300"], seconds=300, **variables)


class Metal:
    """The kernels in the emulator."""

    FOLDER = ROOT / "metal"

    def __init__(self, folder: Path) -> None:
        # Built for each mutant, and of no use afterwards.
        self.cache = os.environ.get("NATTEN_ZOO_EMULATOR_CACHE", str(folder.parent / "emulator"))

    @classmethod
    def files(cls) -> list[Path]:
        cuda = {"dialect_cuda.h", "core_tensor.h", "core_hopper.h"}
        found = (p for p in cls.FOLDER.iterdir() if p.suffix in (".h", ".metal"))
        return sorted(path for path in found if path.name not in cuda)

    @staticmethod
    def together(todo: dict[str, Mutant], jobs: int) -> Iterator[tuple[str, str]]:
        """Names of those that are judged in one build, with what gives each away."""
        from tests.metal_emulator.planted import verdicts

        names = ["", *todo]
        faults = {n: todo[name] for n, name in enumerate(names) if name}
        yield from ((names[n], reason) for n, reason in verdicts(faults, jobs))

    def caught(self, mutant: Mutant | None) -> str:
        """What gives a mutant away; empty if nothing does."""
        what = [mutant.file, str(mutant.start), mutant.before, mutant.after] if mutant else []
        variables = {"NATTEN_ZOO_EMULATOR_CACHE": self.cache}
        return ask("-m", "tests.metal_emulator.judge", *what, seconds=900, **variables)


def ask(*arguments: str, seconds: float, **variables: str) -> str:
    """What a judge finds wrong, in a process of its own; empty if nothing is."""
    return answer([sys.executable, *arguments], seconds, OPENBLAS_NUM_THREADS="1", **variables)


def answer(command: list[str], seconds: float, **variables: str) -> str:
    """Empty if a program succeeds, else what it says."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds,
                              env={**os.environ, **variables})  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it does not end"
    lines = (done.stdout + done.stderr).strip().splitlines()
    wanted = next((line for line in lines if "ERROR" in line or "error:" in line), "")
    return "" if done.returncode == 0 else wanted or (lines or [f"status {done.returncode}"])[-1]


def explained(named: dict[str, Mutant]) -> set[str]:
    """Those of which tests/mutants.txt says, by key or name, why nothing can or need see them."""
    lines = set(EXPLAINED.read_text().splitlines())
    return {name for name, mutant in named.items() if mutant.key in lines or name in lines}


def numbered(found: list[Mutant]) -> dict[str, Mutant]:
    """Mutants by key, told apart by a number where a line has, or lines have, several alike."""
    seen: Counter[str] = Counter()
    names = {}
    for mutant in found:
        seen[mutant.key] += 1
        names[f"{mutant.key} | {seen[mutant.key]}"] = mutant
    return names


def judged(kind: type, todo: dict[str, Mutant], jobs: int) -> Iterator[tuple[str, str]]:
    """Names of mutants with what gives each away, as it becomes known; "" for no mutant at all."""
    judges: SimpleQueue[Native | Metal] = SimpleQueue()

    def judge(mutant: Mutant | None) -> str:
        free = judges.get()
        try:
            return free.caught(mutant)
        finally:
            judges.put(free)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        first, *others = (Path(folder) / str(n) for n in range(min(jobs, len(todo))))
        for other in others:
            pool.submit(lambda at=other: judges.put(kind(at)))
        judges.put(kind(first))
        running = {pool.submit(judge, None): ""}
        running |= {pool.submit(judge, mutant): name for name, mutant in todo.items()}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def all_judged(kind: type, todo: dict[str, Mutant], jobs: int) -> Iterator[tuple[str, str]]:
    """First those of one build, then one by one the others, and those that nothing has seen there.

    What a compiler takes for granted, such as where an array ends, is otherwise in that build.
    """
    left = dict(todo)
    for name, reason in kind.together(todo, jobs) if todo else ():
        if reason:
            left.pop(name, None)
            yield name, reason
    yield from judged(kind, left, jobs) if left else ()


def read(path: Path | None) -> dict[str, str]:
    """What earlier runs have found."""
    if path is None or not path.exists():
        return {}
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    path.write_text("".join(f"{line}\n" for line in whole))  # without one that was cut off
    lines = [json.loads(line) for line in whole]
    return {line["mutant"]: line["found"] for line in lines}


def state(name: str, known: set[str]) -> str:
    """Of one that nothing gives away."""
    return "explained" if name in known else "SURVIVES"


def report(named: dict[str, Mutant], results: dict[str, str], known: set[str]) -> int:
    """Prints how many came to what end, and those that are left; their number."""
    reasons = {name: results[name] for name in named}
    ends = Counter(
        reason if reason == SAME else "caught" if reason else state(name, known)
        for name, reason in reasons.items()
    )
    print(", ".join(f"{count} {end}" for end, count in ends.most_common()))
    left = [m.key for name, m in named.items() if not reasons[name] and name not in known]
    print(f"{len(left)} of {len(named)} are left:", *left, sep="\n  ")
    return len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("native", "metal"))
    parser.add_argument("--sample", type=int, help="so many of them, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="those of files whose names have this in them")
    parser.add_argument("--explained", action="store_true", help="those that are explained, too")
    parser.add_argument("--list", action="store_true", help="list them and stop")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--results", type=Path, help="JSON lines: what is known, and what is found")
    args = parser.parse_args()
    kind = {"native": Native, "metal": Metal}[args.what]
    named = numbered([m for path in kind.files() if args.only in path.name
                      for m in mutants(path.name, path.read_text())])  # fmt: skip
    total = len(named)
    if args.sample is not None and args.sample < total:
        names = random.Random(args.seed).sample(list(named), args.sample)
        named = {name: named[name] for name in names}
    if args.list:
        print(*named.values(), sep="\n")
        return 0
    known = explained(named)
    results = read(args.results)
    if not args.explained:
        results = dict.fromkeys(known, "") | results
    todo = {name: m for name, m in named.items() if name not in results}
    todo = dict(sorted(todo.items(), key=lambda item: item[0] in known))  # what is new first
    print(f"{len(named)} of {total} mutants, {len(named) - len(todo)} known", flush=True)
    before = args.results.read_text() if args.results and args.results.exists() else ""
    for name, reason in all_judged(kind, todo, args.jobs):
        if not name and reason:
            if args.results:
                args.results.write_text(before)  # what the others have seen may be the same
            sys.exit(f"without any fault: {reason}")
        if not name:
            continue
        results[name] = reason
        print(f"{named[name]}: {(reason or state(name, known))[:160]}", flush=True)
        if args.results:
            with args.results.open("a") as file:
                file.write(json.dumps({"mutant": name, "found": reason}) + "\n")
    return report(named, results, known)


if __name__ == "__main__":
    sys.exit(bool(main()))

"""Many faults of the kernels in one text, of which a number at run time says which is there.

A fault planted by itself wants its kernels compiled anew, for seconds each. Here they are compiled
once, and what each fault does is found out in a process of its own that only runs them:

    <   becomes  < na_less{17} <        an object that takes one side, and then the other
    3   becomes  (na_planted(17) ? 4 : 3)

Each place says when it is come to, too: what a check passes by without a fault is no part of it.

A fault where a constant must be known to the compiler, or in `&&` and `||`, whose right side may be
left out, cannot be planted so. scripts/mutants.py plants those one by one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Protocol
from unittest import mock

from natten_zoo import metal as sources
from tests.metal_emulator import judge
from tests.metal_emulator.judge import checks, seen

ADDRESS = 0x600000000000  # of the number, where no program has anything
REACHED = ADDRESS + mmap.PAGESIZE  # a byte for each fault, 1 once its place was come to
MOST = 1 << 14  # faults in a text
SECONDS = 40  # of processor time for a check, which takes a few
NAMES = {"<": "less", "<=": "most", ">": "more", ">=": "least", "==": "same", "!=": "other"}
HEADER = f"""
METAL_FUNC bool na_planted(int number) {{
  int planted;
  asm volatile("movb $1, (%1)\\n\\tmovl (%2), %0"
               : "=r"(planted) : "r"({REACHED}L + number), "r"({ADDRESS}L));
  return planted == number;
}}
#define NA_COMPARISON(NAME, BY, IS, INSTEAD) \\
  struct na_##NAME {{ int number; }}; \\
  template <typename T> struct na_##NAME##_left {{ T x; int number; }}; \\
  template <typename T> METAL_FUNC na_##NAME##_left<T> operator BY(T x, na_##NAME by) {{ \\
    na_##NAME##_left<T> left = {{x, by.number}}; \\
    return left; \\
  }} \\
  template <typename T, typename U> \\
  METAL_FUNC bool operator BY(na_##NAME##_left<T> left, U y) {{ \\
    return na_planted(left.number) ? left.x INSTEAD y : left.x IS y; \\
  }}
NA_COMPARISON(less, <, <, <=)
NA_COMPARISON(most, <, <=, <)
NA_COMPARISON(more, <, >, >=)
NA_COMPARISON(least, <, >=, >)
NA_COMPARISON(same, ==, ==, !=)
NA_COMPARISON(other, ==, !=, ==)
template <int NUMBER, typename T>
METAL_FUNC T na_planted_min(T a, T b) {{ return (a < b) != na_planted(NUMBER) ? a : b; }}
template <int NUMBER, typename T>
METAL_FUNC T na_planted_max(T a, T b) {{ return (a > b) != na_planted(NUMBER) ? a : b; }}
"""
# Where a compiler must know numbers, and enums, which Python reads, too.
FIXED = re.compile(
    r"constexpr[^;]*;|\benum\b[^;]*;|struct \w+ \{[^()]*?\};|\btypedef\b[^;]*;"
    r"|template <[^\n]*|#[^\n]*|NA_S(?:HARED|LABS)[^;]*;", re.S)  # fmt: skip
PLACED = re.compile(r"na_planted\((\d+)\)|na_[a-z]+\{(\d+)\}|na_planted_m\w\w<(\d+)>")
AFTER_WINDOWS = 1  # the first check of all compiles window.h for this machine
NO_MORE = "no check is left"


class Fault(Protocol):
    """A change of one place in a file, as scripts/mutants.py has them."""

    @property
    def file(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...


Faults = Mapping[int, Fault]  # by number, from 1 on: 0 is none
Reached = ctypes.Array[ctypes.c_ubyte]


def verdicts(faults: Faults, jobs: int) -> Iterator[tuple[int, str]]:
    """Numbers of faults with what gives each away, empty where nothing does.

    Those that cannot be planted so are left out. The number 0 ends it: something is wrong without
    a fault.
    """
    number, reached = memory()

    def found(alone: bool, turn: int, n: int) -> str:
        number.value = n
        check = next(islice(checks("", None, alone), turn, None), None)
        return seen(check) if check else NO_MORE

    for_planes, others = dict[int, Fault](), dict[int, Fault]()
    for n, fault in faults.items():
        alone = judge.for_planes(sources.source(fault.file), fault.start)
        (for_planes if alone else others)[n] = fault
    yield from one_after_another(partial(found, True), for_planes, 0, jobs, reached)
    yield from one_after_another(partial(found, False), others, AFTER_WINDOWS, jobs, reached)


def one_after_another(
    ask: Callable[[int, int], str], faults: Faults, first: int, jobs: int, reached: Reached
) -> Iterator[tuple[int, str]]:
    """The verdicts of a list of checks, from one on, each of which sees what no other has."""
    there, left = dict(faults), set(faults)
    for turn in count(first):
        reached[:] = [0] * MOST
        there, sound = those_that_compile(partial(ask, turn), there)
        come_to = {n for n in left if reached[n]}
        left &= there.keys()
        if sound == NO_MORE or not left:
            break
        if sound:
            yield 0, sound
            return
        with planted(there):
            for n, reason in apart(partial(ask, turn), sorted(come_to & there.keys()), jobs):
                if reason:
                    left.remove(n)
                    yield n, reason.splitlines()[0]
    yield from ((n, "") for n in sorted(left))


def those_that_compile(ask: Callable[[int], str], faults: Faults) -> tuple[dict[int, Fault], str]:
    """Without those that the compiler complains of; and what is found where none is planted."""
    there = {n: f for n, f in faults.items() if rewritten(n, f) and f.file != "window.h"}
    while True:
        with planted(there) as fit:
            there = {n: there[n] for n in fit}
            ((_, sound),) = apart(ask, [0], 1)
        unfit = refused(sound) & there.keys()
        if not unfit:
            return there, sound
        there = {n: fault for n, fault in there.items() if n not in unfit}


def refused(message: str) -> set[int]:
    """The faults in the lines that clang shows."""
    shown = [line for line in message.splitlines() if " | " in line]
    return {int(next(filter(None, place))) for line in shown for place in PLACED.findall(line)}


# ---- The text


def rewritten(n: int, fault: Fault) -> str:
    """What stands for what is there and for the fault; empty if there is no way to say that."""
    before = fault.before
    if before in NAMES:
        sign = "==" if before in ("==", "!=") else "<"
        return f"{sign} na_{NAMES[before]}{{{n}}} {sign}"
    if before in ("min", "max"):
        return f"planted_{before}<{n}>"
    if "barrier" in before:
        return f"if (!na_planted({n})) {before}"
    return "" if before in ("&&", "||") else f"(na_planted({n}) ? {fault.after} : {before})"


@contextmanager
def planted(faults: Faults) -> Iterator[set[int]]:
    """Kernels are built with all of them, but for those in places that the compiler must know."""
    original, texts, fit = sources.source, {}, set()
    for file in {fault.file for fault in faults.values()}:
        text = original(file)
        fixed = [match.span() for match in FIXED.finditer(text)]
        here = [(n, fault) for n, fault in faults.items() if fault.file == file]
        for n, fault in sorted(here, key=lambda item: -item[1].start):  # from the last one on
            start, end = fault.start, fault.start + len(fault.before)
            if not any(a <= start < b for a, b in fixed):
                text = text[:start] + rewritten(n, fault) + text[end:]
                fit.add(n)
        texts[file] = text
    first = "dialect_metal.h"
    texts[first] = texts.get(first, original(first)) + HEADER
    with mock.patch.object(sources, "source", lambda name: texts.get(name) or original(name)):
        yield fit


# ---- Processes


def memory() -> tuple[ctypes.c_int, Reached]:
    """The number of the fault that is there, each process's own, and the places come to in any."""
    number = ctypes.c_int.from_address(mapped(ADDRESS, mmap.PAGESIZE, mmap.MAP_PRIVATE))
    places = ctypes.c_ubyte * MOST
    return number, places.from_address(mapped(REACHED, MOST, mmap.MAP_SHARED))


def mapped(address: int, size: int, kind: int) -> int:
    """`address`, where there is memory now."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = kind | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
    there = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if there != address:
        raise RuntimeError(f"another program's memory is at {address:#x}")
    return address


def apart(
    ask: Callable[[int], str], numbers: Iterable[int], jobs: int
) -> Iterator[tuple[int, str]]:
    """What is answered of each, in processes of their own, so many at a time.

    This process must not have computed with MLX, whose threads no other one inherits.
    """
    waiting, running = list(numbers)[::-1], dict[int, int]()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                n = waiting.pop()
                running[begin(ask, n, Path(folder, str(n)))] = n
            process, status = os.wait()
            n = running.pop(process)
            ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            if ended:
                yield n, "it does not end" if ended == signal.SIGXCPU else f"signal {ended}"
            else:
                yield n, Path(folder, str(n)).read_text()


def begin(ask: Callable[[int], str], n: int, answer: Path) -> int:
    """Starts a process that writes its answer to a file; its number."""
    process = os.fork()
    if process:
        return process
    seconds = SECONDS if n else 10 * SECONDS  # without a fault it compiles
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        text = ask(n)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    answer.write_text(text)
    os._exit(0)

"""Finds clang and compiles: the runtime, the prelude (a precompiled header) and the kernels.

Everything lies in a cache folder named after the content it was made from (compiler, shim, runtime,
MLX's headers), so nothing is ever stale and several processes can share it. Deleting it is safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from . import instrument, rewrites

HERE = Path(__file__).parent
OLDEST_CLANG = 19
PRELUDE = "mlx/backend/metal/kernels/utils.h"  # what MLX puts before every custom kernel

# The <metal_*> headers that sources may include; they all lead to <metal_stdlib>.
FORWARDING_HEADERS = shlex.split(
    "array atomic common compute geometric integer limits logging math quadgroup relational "
    "simdgroup simdgroup_matrix type_traits uniform"
)

TARGET = "x86_64-unknown-linux-gnu"
CODE_FLAGS = shlex.split(
    "-mrelocation-model pic -pic-level 2 -target-cpu x86-64-v3 -fdebug-compilation-dir=/source "
    "-ftrivial-auto-var-init=pattern -w"
)
_WATCHED = (
    "-debug-info-kind=line-tables-only -dwarf-version=4 -fsanitize=thread "
    "-mllvm -tsan-instrument-read-before-write "
)
_UNDEFINED = "integer-divide-by-zero,signed-integer-overflow"
_ROLLED = "-fno-unroll-loops -mllvm -unroll-threshold=0"  # whatever pragmas say: half the time
BUILDS = {  # "counted" fuses multiply-adds as a GPU would; the others keep results reproducible
    "checked": (
        f"-O1 -ffp-contract=off {_ROLLED} {_WATCHED} "
        f"-fsanitize={_UNDEFINED} -fsanitize-recover={_UNDEFINED}"
    ),
    "counted": f"-O2 -ffp-contract=on {_WATCHED}",
    "fast": "-O2 -ffp-contract=off",
}
FAST_MATH_FLAGS = shlex.split(
    "-ffast-math -menable-no-infs -menable-no-nans -fapprox-func -mreassociate "
    "-freciprocal-math -fno-signed-zeros -funsafe-math-optimizations -ffp-contract=fast"
)


class CompileError(Exception):
    """clang refused a source; the message holds its errors."""


def find_clang() -> str | None:
    """Returns clang 19 or newer: `NATTEN_ZOO_CLANG`, else the newest one on the path."""
    chosen = os.environ.get("NATTEN_ZOO_CLANG")
    names = [chosen] if chosen else [*(f"clang-{n}" for n in range(30, 18, -1)), "clang"]
    return next((name for name in names if _clang_version(name) >= OLDEST_CLANG), None)


@functools.cache
def _clang_version(name: str) -> int:
    if not shutil.which(name):
        return 0
    text = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"clang version (\d+)", text)
    return int(found[1]) if found else 0


@functools.cache
def why_not() -> str | None:
    """Says why Metal sources cannot be checked and run here, or returns None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the Metal emulator needs Linux on x86-64"
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        return "the Metal emulator needs a CPU with AVX2"
    if not find_clang():
        return (
            f"the Metal emulator needs clang {OLDEST_CLANG} or newer: apt-get install clang-19 "
            "(https://apt.llvm.org has newer ones), or set NATTEN_ZOO_CLANG"
        )
    return None


def clang() -> str:
    """Returns the compiler, or raises and says how to get one."""
    reason = why_not()
    if reason:
        raise RuntimeError(reason)
    return str(find_clang())


def cache_root() -> Path:
    """`NATTEN_ZOO_EMULATOR_CACHE`, else a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("NATTEN_ZOO_EMULATOR_CACHE", Path(base) / "natten_zoo" / "emulator"))


def digest(*texts: str) -> str:
    """A short name for some content."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


@functools.cache
def toolchain() -> Path:
    """The cache folder of this compiler, shim, runtime and MLX, with its include folder filled."""
    headers = _mlx_headers()
    modules = [HERE / f"{name}.py" for name in ("build", "rewrites", "instrument")]
    own = [*HERE.glob("shim/**/*"), *HERE.glob("rt/*"), *modules]
    texts = [p.read_text() for p in sorted(own) if p.is_file()]
    version = subprocess.run([clang(), "--version"], capture_output=True, text=True).stdout
    folder = cache_root() / digest(version, *texts, *headers.values())
    with _made_once(folder / "include") as include:
        if include:
            _fill_include_folder(include, headers)
    return folder


def _fill_include_folder(include: Path, headers: dict[str, str]) -> None:
    shutil.copytree(HERE / "shim", include, dirs_exist_ok=True)
    for name in FORWARDING_HEADERS:
        (include / f"metal_{name}").write_text("#include <metal_stdlib>\n")
    (include / "prelude.h").write_text(f'#include "{PRELUDE}"\n')
    for name, text in headers.items():
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).write_text(rewrites.rewrite(text, threadgroup_variables=False))


def _mlx_headers() -> dict[str, str]:
    """MLX's prelude and what it includes, from the installed wheel."""
    root = Path(mx.__file__).parent / "include"
    texts: dict[str, str] = {}
    pending = [PRELUDE]
    while pending:
        name = pending.pop()
        if name not in texts:
            texts[name] = (root / name).read_text()
            pending += re.findall(r'#include "(mlx/[^"]+)"', texts[name])
    return texts


@contextlib.contextmanager
def _made_once(target: Path) -> Iterator[Path | None]:
    """Yields a fresh path to make `target` at, or None if it exists. One process at a time."""
    if target.exists():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        yield unfinished
        unfinished.rename(target)


def run_clang(*arguments: str, accept_errors: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs clang; raises `CompileError` with its messages unless errors are what is asked for."""
    done = subprocess.run([clang(), *arguments], capture_output=True, text=True)
    if done.returncode and not accept_errors:
        raise CompileError(done.stderr)
    return done


def language_flags(metal_version: int = 310) -> list[str]:
    """Flags of the language: C++ for OpenCL 2021 with the shim as its library."""
    include = toolchain() / "include"
    return [
        *("-triple", TARGET, "-x", "clcpp", "-cl-std=clc++2021"),
        *("-internal-isystem", str(include), "-cl-single-precision-constant"),
        *(f"-D__METAL_VERSION__={metal_version}", "-fgnuc-version=4.2.1"),
        *("-Wno-unknown-attributes", "-Wno-unknown-pragmas", "-Wno-invalid-constexpr"),
        *("-Wno-pass-failed", "-Wno-ignored-attributes", "-Wno-psabi"),
    ]


def with_prelude(flags: list[str]) -> list[str]:
    """Adds MLX's prelude, precompiled for just these flags, to the flags of a `-cc1` run."""
    target = toolchain() / f"prelude-{digest(*flags)}.pch"
    with _made_once(target) as output:
        if output:
            source = toolchain() / "include" / "prelude.h"
            run_clang("-cc1", *flags, "-emit-pch", str(source), "-o", str(output))
    return [*flags, "-include-pch", str(target)]


def build_runtime() -> Path:
    """Compiles rt/*.cpp to a shared library."""
    target = toolchain() / "runtime.so"
    with _made_once(target) as output:
        if output:
            sources = sorted(str(p) for p in HERE.glob("rt/*.cpp"))
            flags = shlex.split("-std=c++20 -O2 -march=x86-64-v3 -fPIC -shared -fno-exceptions")
            run_clang("--driver-mode=g++", *flags, *sources, "-o", str(output))
    return target


def build_kernel(source: str, build: str, fast_math: bool, metal_version: int = 310) -> Path:
    """Compiles a translation unit (after the prelude) to a shared library, as one of `BUILDS`."""
    math = FAST_MATH_FLAGS if fast_math else []
    flags = [*language_flags(metal_version), *CODE_FLAGS, *shlex.split(BUILDS[build]), *math]
    target = toolchain() / "kernels" / f"{digest(build, source, *flags)}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            linked = _compile(source, Path(folder), flags, build)
            linked.rename(target)
    return target


def _compile(source: str, folder: Path, flags: list[str], build: str) -> Path:
    """Runs clang in steps, with the runtime's calls put into the IR between them."""
    text, ir, compiled, linked = (folder / f"kernel.{s}" for s in ("clcpp", "ll", "o", "so"))
    text.write_text(source)
    backend = ["-triple", TARGET, *flags[flags.index(CODE_FLAGS[0]) :]]
    as_ir = ["-emit-llvm", "-o", str(ir)]
    as_object = ["-emit-obj", "-o", str(compiled)]
    if build == "fast":
        run_clang("-cc1", *with_prelude(flags), str(text), *as_object)
    else:
        run_clang("-cc1", *with_prelude(flags), "-disable-llvm-passes", str(text), *as_ir)
        ir.write_text(instrument.check_accesses(ir.read_text()))
        if build == "counted":
            run_clang("-cc1", *backend, str(ir), *as_ir)
            ir.write_text(instrument.count_operations(ir.read_text()))
            backend.append("-disable-llvm-passes")
        run_clang("-cc1", *backend, str(ir), *as_object)
    link = ["-shared", "-nostartfiles", "-Wl,-Bsymbolic", str(compiled), "-lm"]
    run_clang(*link, "-o", str(linked))
    return linked


def symbolize(library: Path, addresses: list[int]) -> dict[int, str]:
    """Source positions of addresses in a kernel's library: innermost first, joined by ' < '."""
    if not addresses or not shutil.which("addr2line"):
        return {}
    command = ["addr2line", "-a", "-i", "-e", str(library), *map(hex, addresses)]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    blocks = re.split(r"^0x[0-9a-f]+\n", text, flags=re.M)[1:]
    return dict(zip(addresses, map(_own_frames, blocks), strict=False))


def _own_frames(block: str) -> str:
    """Keeps the frames of the kernel's text: names given by #line are relative to /source."""
    own = re.findall(r"^/source/(?!entry\.metal)(\S+)", block, re.M)
    return " < ".join(dict.fromkeys(own))

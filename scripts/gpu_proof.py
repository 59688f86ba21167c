"""What gpu_check.py proves on a real GPU: right numbers, memory, and arrays of any size."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def check(count: int, families: list[int] | None = None) -> dict[str, Any]:
    """Random problems against the reference, and against themselves, on views of arrays, too."""
    import mlx.core as mx

    from natten_zoo.ops import gpu
    from natten_zoo.ops.gpu.device import current
    from natten_zoo.ops.gpu.kernels import failures
    from tests.ops.gpu import views as on
    from tests.ops.gpu.problems import check_attention, check_unfused, random_cases, worst

    wrong, largest, started = [], {}, time.perf_counter()
    there = kinds()
    numbers = range(len(there)) if families is None else families
    for at in numbers:
        family = there[at]
        for case in random_cases(family, seed=at, count=-(-count // len(numbers))):
            alone = family.attends_only
            for checker in (check_attention,) if alone else (check_attention, check_unfused):
                found = checker(case)
                fault = worst(found, family.dtype)
                if fault:
                    wrong.append(f"{checker.__name__}: {fault} of {found} for {case.problem}")
                    print("WRONG", wrong[-1], flush=True)
                key = str(family.dtype)
                largest[key] = max(largest.get(key, 0.0), *found.values())
            given = (case.query, case.key, case.value, case.rpb, case.lengths)
            first, second = (gpu.forward(case.problem, *given) for _ in range(2))
            out, lse, stats = first
            rest = (out, stats, out, lse)
            grads = [gpu.backward(case.problem, *given, *rest) for _ in range(2)]
            pairs = zip((*first, *grads[0]), (*second, *grads[1]), strict=True)
            if any(not mx.array_equal(x, y, equal_nan=True) for x, y in pairs if x is not None):
                wrong.append(f"results change from run to run for {case.problem}")
            name = list(on.VIEWS)[case.seed % len(on.VIEWS)]
            views, view = on.seen(case, on.VIEWS[name]), on.VIEWS[name]
            for of in (on.results,) if alone else (on.results, on.unfused):
                if not on.same_bits(of(views, view), of(case)):
                    wrong.append(f"{of.__name__} of views ({name}) differ for {case.problem}")
            joins = case.problem.head_dim == case.problem.value_dim and not family.finer
            if joins and not on.joined_alike(on.packed(case)):
                wrong.append(f"gradients in one array differ for {case.problem}")
            if not on.same_without_lse(case):
                wrong.append(f"results without an LSE differ for {case.problem}")
    wrong += [f"not built: {why}" for why in failures(current()).values()]
    seconds = time.perf_counter() - started
    print(f"check: {count} problems, {len(wrong)} wrong, largest errors {largest}, {seconds:.0f} s")
    return {"problems": count, "wrong": wrong, "largest": largest, "seconds": seconds}


def kinds() -> tuple[Any, ...]:
    """The families of random problems that this GPU has cores for."""
    from natten_zoo.metal import HOPPER
    from natten_zoo.ops.gpu.device import current
    from tests.ops.gpu.problems import FAMILIES, ON_HOPPER

    return (*FAMILIES, *ON_HOPPER) if HOPPER in current().cores else FAMILIES


def memory(families: list[int] | None = None) -> dict[str, Any]:
    """What compute-sanitizer's tools say of two problems of each family."""
    if shutil.which("compute-sanitizer") is None:
        return {"skipped": "compute-sanitizer is not installed"}
    numbers = range(len(kinds())) if families is None else families
    script = str(Path(__file__).with_name("gpu_check.py"))
    check_one = [sys.executable, script, "--only", "check", "--count", "2", "--families"]
    commands = [[*check_one, str(at)] for at in numbers]
    together(commands)  # builds the kernels, which takes long under a checker
    report: dict[str, Any] = {"wrong": []}
    for tool in ("memcheck", "racecheck", "synccheck"):
        checker = ["compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=natten_zoo"]
        said = together([[*checker, *command] for command in commands])
        clean = [" 0 errors" in one or "(0 errors" in one for one in said]
        report[tool] = f"{sum(clean)} of {len(said)} families clean"
        report["wrong"] += [one[-1500:] for one, good in zip(said, clean, strict=True) if not good]
        print(f"{tool}: {report[tool]}", flush=True)
    print(*report["wrong"], sep="\n", flush=True)
    return report


def together(commands: list[list[str]], seconds: int = 150) -> list[str]:
    """Runs commands side by side and returns what each printed."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: output(command, seconds), commands))


def output(command: list[str], seconds: int) -> str:
    """What a command prints; of one that takes too long, that."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds} s: {' '.join(command)}"
    return run.stdout + run.stderr


def large() -> dict[str, Any]:
    """The last tokens of one long sample, and the last of many samples."""
    import mlx.core as mx

    from natten_zoo import ops
    from natten_zoo.ops import gpu

    def results(attention: Callable[..., Any], arrays: list[Any]) -> list[Any]:
        *qkv, gradient = arrays
        return [*mx.vjp(lambda *x: [attention(*x)], qkv, [gradient])[1], attention(*qkv)]

    def normal(*shape: int) -> Any:
        return mx.random.normal(shape).astype(mx.float16)

    mx.random.seed(0)
    factor = (mx.arange(1100).reshape(-1, 1, 1, 1, 1) % 7 * 0.125 + 0.25).astype(mx.float16)
    cases: list[tuple[str, Any, Callable[[Any], Any], int, Any]] = [
        ("a long sample", lambda q, k, v: ops.na1d(q, k, v, 7), lambda x: x[:, -1024:], 8,
         lambda: mx.tile(normal(1, 4200, 1, 32), (1, 16_000, 1, 1))),
        ("many samples", lambda q, k, v: ops.na2d(q, k, v, 7), lambda x: x[-2:], 0,
         lambda: factor * normal(1, 64, 64, 16, 32)),
    ]  # fmt: skip
    wrong = []
    with ops.use_backend(gpu.NAME):
        for name, attention, end_of, margin, make in cases:
            arrays = [make() for _ in "qkvg"]
            mx.eval(arrays)
            size, ends = arrays[0].size, [end_of(x) + 0 for x in arrays]
            got = [end_of(x) + 0 for x in results(attention, arrays)]  # copies of the ends alone
            mx.eval(got, ends)
            del arrays
            mx.clear_cache()
            pairs = zip(got, results(attention, ends), strict=True)
            # The windows of the first tokens of an end reach farther in the whole.
            errors = [float(mx.abs(x[:, margin:] - y[:, margin:]).max()) for x, y in pairs]
            wrong += [f"{name}: {errors}"] if max(errors) > 4e-3 or size <= 2**31 else []
            print(f"large: {name}, {size} elements: errors {errors}", flush=True)
    return {"wrong": wrong}

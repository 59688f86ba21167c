"""Whether an extension computes what it should: the tier's own tests, then random problems.

    python -m tests.ops.native.judge path/to/_ext.so

The exit status says it; what was wrong stands in the last line. scripts/mutants.py asks.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["NATTEN_ZOO_THREADS"] = "3"
NAME = "natten_zoo.ops.native._ext"


def load(path: str) -> None:
    """Have the tier use this extension."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec and spec.loader
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])


def tests() -> Iterator[Callable[[], Any]]:
    """Those that no random problem stands for."""
    import mlx.core as mx

    from tests.layers import test_activation, test_norm
    from tests.ops.native import test_edges, test_native

    for seed, dtype in enumerate((mx.float16, mx.bfloat16)):
        yield partial(test_edges.test_every_half_number_is_read_and_written, dtype)
        yield partial(test_edges.test_results_are_rounded_to_the_nearest_even, dtype, 0)
        yield partial(test_edges.test_results_are_rounded_to_the_nearest_even, dtype, 1)
        yield partial(test_edges.test_tiles_that_are_alike_but_for_one_lane, 2 + 2 * seed)
        yield partial(test_activation.test_in_half_precision_it_is_rounded_once, dtype)
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        yield partial(test_edges.test_channels_that_lie_two_apart, dtype)
    yield test_edges.test_tiles_that_are_alike_but_for_the_first_lane
    yield test_edges.test_rows_that_are_multiplied_by_two
    yield test_edges.test_the_number_of_threads
    yield test_edges.test_what_threads_keep_does_not_grow
    yield from (
        partial(test_activation.test_is_exact_to_a_millionth, (count,)) for count in (33, 32_769)
    )
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        yield from (
            partial(test_norm.test_against_the_definition, shape, dtype)
            for shape in ((33, 17), (257, 64), (1, 16_385))
        )
    yield test_norm.test_temporaries_are_written_over
    yield partial(test_norm.test_as_a_layer, {})
    yield test_activation.test_the_tail_keeps_its_digits
    yield test_activation.test_a_temporary_is_written_over
    yield test_edges.test_all_threads_work
    yield partial(test_native.test_unfused, mx.float32)  # with lengths, too
    yield partial(test_native.test_attention, mx.float32, True)


def wrong() -> Iterator[str]:
    import mlx.core as mx

    from natten_zoo.ops import backend
    from tests.ops.cases import CASES, TOLERANCE, attention_error
    from tests.ops.extremes import worst
    from tests.ops.test_twenty_thousand import problem

    for name in ("large kernel", "all strides", "varlen", "2-D"):
        if max(attention_error(CASES[name], "nanobind").values()) > TOLERANCE:
            yield name
    for test in tests():
        try:
            test()
        except AssertionError:
            yield test.func.__name__ if isinstance(test, partial) else test.__name__
    for number in range(30_000, 30_300):
        case = problem(number)
        if case.kind == "extra" or backend.why_not("nanobind", case.problem):
            continue
        for name, error in worst(case, "nanobind").items():
            if not error <= 1:
                yield f"problem({number}): {name} by {error:.3g} times"
    mx.synchronize()


if __name__ == "__main__":
    load(sys.argv[1])
    first = next(wrong(), "")
    print(first)
    sys.exit(bool(first))

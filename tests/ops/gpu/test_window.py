"""metal/window.h, compiled as C++, against Neighborhood and against itself."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from natten_zoo import metal
from natten_zoo.ops import Neighborhood

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
WRAPPER = """
extern "C" void keys(int* out, int length, int kernel, int stride, int causal) {
  for (int i = 0; i < length; i++) {
    const na_span s = na_keys_of(i, length, kernel, stride, causal);
    out[2 * i] = s.first, out[2 * i + 1] = s.last;
  }
}
extern "C" void queries(int* out, int length, int kernel, int stride, int causal) {
  for (int i = 0; i < length; i++) {
    const na_span s = na_queries_of(i, length, kernel, stride, causal);
    out[2 * i] = s.first, out[2 * i + 1] = s.last;
  }
}
"""
AXES = [
    (length, kernel, stride, causal)
    for length, kernel, causal in itertools.product(range(1, 15), range(1, 17), (False, True))
    for stride in range(1, kernel + 1)
]


def build(folder: Path, text: str, *options: str) -> ctypes.CDLL:
    """A library of this text of window.h."""
    (folder / "window.cpp").write_text(text + WRAPPER)
    command = [COMPILER, "-shared", "-fPIC", *options]
    subprocess.run([*command, "-o", folder / "window.so", folder / "window.cpp"], check=True)
    return ctypes.CDLL(str(folder / "window.so"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    warnings = ("-Wall", "-Werror", "-Wno-unused-function")
    return build(tmp_path_factory.mktemp("window"), metal.source("window.h"), *warnings)


def spans(function, axis) -> np.ndarray:
    out = np.zeros((axis[0], 2), np.int32)
    function(out.ctypes.data_as(ctypes.c_void_p), *map(int, axis))
    return out


def test_keys_are_those_of_neighborhood(library):
    for axis in AXES:
        length, kernel, stride, causal = axis
        hood = Neighborhood.of(1, kernel, window_stride=stride, is_causal=causal)
        first, count = hood.windows(0, length)
        np.testing.assert_array_equal(
            spans(library.keys, axis), np.stack([first, first + count], 1)
        )


def test_queries_are_the_inverse(library):
    for axis in AXES:
        keys, queries = spans(library.keys, axis), spans(library.queries, axis)
        at = np.arange(axis[0])
        sees = (at >= keys[:, :1]) & (at < keys[:, 1:])  # [query, key]
        seen = (at >= queries[:, :1]) & (at < queries[:, 1:])  # [key, query]
        np.testing.assert_array_equal(sees, seen.T, err_msg=str(axis))

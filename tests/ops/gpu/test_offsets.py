"""metal/arrays.h and arithmetic.h, compiled as C++: rows beyond 2^31, and exact quotients."""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import metal
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu.device import current
from natten_zoo.ops.gpu.plan import MAX_ROWS, lay_out
from natten_zoo.ops.problem import Problem

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
DIALECT = """
#define NA_FN static inline
#define DEV
#define THR
#define NA_UNROLL
typedef unsigned int uint;
static int units = 0;  // of the last place, that a reciprocal is off by
NA_FN float na_reciprocal(float x) {
  const float exact = 1.0f / x;
  int bits;
  __builtin_memcpy(&bits, &exact, 4);
  bits += units;
  float off;
  __builtin_memcpy(&off, &bits, 4);
  return off;
}
NA_FN long na_product(int a, int b) { return long(a) * b; }
NA_FN float na_float(int) { return 0.0f; }
"""
WRAPPER = """
extern "C" void off_by(int n) { units = n; }
extern "C" int quotient(int n, int d) { return na_quotient(n, d); }
extern "C" int small_quotient(int n, int d) { return na_small_quotient(n, d); }
// Where a tile begins: batch entry, row of the array, and the places on both axes.
template <bool FINER>
void row_of_tile(long* out, const int* p, int item, int y, int x, int head, int by_key) {
  const na_point many = na_size(1, y, x);
  na_tile tile = by_key ? na_key_tile<2, false>(p, p, item, many)
                        : na_query_tile<2, false>(p, p, item, many);
  const na_source of = na_source_of<2, FINER>(p, head, tile);
  const na_rows rows = by_key ? na_rows_of<2, true>(p, tile, head, p[NA_KV_HEADS], NA_OWN)
                             : na_rows_of<2, false>(p, tile, of.head, of.heads, of.extent);
  na_point at = na_size(0, tile.start[1], tile.start[2]);
  out[0] = tile.batch;
  out[1] = na_row<2>(rows, at);
  for (int a = 1; a < 3; a++) {
    const na_axis axis = tile.axis[a];
    out[1 + a] = by_key ? axis.key0 + at.at[a] * long(axis.key_step)
                        : axis.out0 + at.at[a] * long(axis.out_step);
  }
}
extern "C" void tile_row(long* out, const int* p, int item, int y, int x, int head, int by_key) {
  row_of_tile<false>(out, p, item, y, x, head, by_key);
}
extern "C" void finer_row(long* out, const int* p, int item, int y, int x, int head, int by_key) {
  row_of_tile<true>(out, p, item, y, x, head, by_key);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("offsets")
    names = ("arithmetic", "window", "tile", "arrays")
    texts = [DIALECT, *(metal.source(f"{name}.h") for name in names)]
    (folder / "tile.cpp").write_text("\n".join([*texts, WRAPPER]))
    command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-fsanitize=undefined"]
    command += ["-fsanitize-undefined-trap-on-error"]  # an overflow of int ends the process
    subprocess.run([*command, "-o", folder / "tile.so", folder / "tile.cpp"], check=True)
    return ctypes.CDLL(str(folder / "tile.so"))


@pytest.mark.parametrize("by_key", [False, True], ids=["queries", "keys"])
@pytest.mark.parametrize("options", [{}, {"dilation": (3, 2)}, {"stride": (2, 3)}], ids=str)
def test_rows_beyond_2_31(library, by_key, options):
    hood = Neighborhood.of(2, 5, **options)
    problem = Problem(hood, 400_000, (61, 67), 8, 8, 32, 32, 1.0, mx.float16)
    layout = lay_out(problem, current(), (32, 32), scale=1.0, by_key=by_key)
    params = np.array(layout.params)
    spatial = problem.spatial if by_key else problem.out
    at, of_axis = metal.enumerators("na_param"), metal.enumerators("na_axis_param")
    teams = params[at["NA_AXES"] :].reshape(3, -1)[:, of_axis["NA_TEAMS"]].tolist()
    _, *size = (q * g for q, g in zip(layout.template.rows, teams, strict=True))
    shape = (problem.batch, *spatial, problem.heads)
    assert math.prod(shape) > 2**31
    items = layout.slices
    out = np.zeros(4, np.int64)
    for item, head in itertools.product((0, items // 2 + 5, items - 1), (0, 7)):
        pointer = out.ctypes.data_as(ctypes.c_void_p)
        library.tile_row(pointer, params.ctypes.data_as(ctypes.c_void_p), item, *size, head, by_key)
        batch, row, y, x = out.tolist()
        assert row == np.ravel_multi_index((batch, y, x, head), shape)
    assert batch == problem.batch - 1
    assert row > 2**31


@pytest.mark.parametrize("options", [{}, {"dilation": (3, 2)}], ids=str)
def test_finer_rows_beyond_2_31(library, options):
    finer, heads = (3, 2), 2
    hood = Neighborhood.of(2, 5, **options)
    problem = Problem(hood, 400_000, (61, 67), 12, 1, 32, 32, 1.0, mx.float16, finer=finer)
    layout = lay_out(problem, current(), (32, 32), scale=1.0)
    params = np.array(layout.params)
    at, of_axis = metal.enumerators("na_param"), metal.enumerators("na_axis_param")
    teams = params[at["NA_AXES"] :].reshape(3, -1)[:, of_axis["NA_TEAMS"]].tolist()
    _, *size = (q * g for q, g in zip(layout.template.rows, teams, strict=True))
    assert problem.queries == (400_000, 183, 134, heads)
    coarse, fine = np.zeros(4, np.int64), np.zeros(4, np.int64)
    for item, head in itertools.product((0, layout.slices - 1), range(problem.heads)):
        for out, row in ((coarse, library.tile_row), (fine, library.finer_row)):
            pointers = (x.ctypes.data_as(ctypes.c_void_p) for x in (out, params))
            row(*pointers, item, *size, head, False)
        batch, row, *place = fine.tolist()
        inside = np.unravel_index(head % 6, finer)
        cells = zip(coarse[2:].tolist(), finer, inside, strict=True)
        assert place == [n * r + i for n, r, i in cells]
        assert row == np.ravel_multi_index((batch, *place, head // 6), problem.queries)
    assert row > 2**31


# A team at the end of the largest sample that the tier takes has rows beyond it: nobody reads them,
# but where they would be is computed.
BEYOND = """
int main() {
  na_rows rows;
  rows.base = 0;
  rows.step[0] = rows.step[2] = 1;
  rows.step[1] = 46340;
  return na_row<2>(rows, na_size(0, 46341 + 7, 5)) == 46348L * 46340L + 5 ? 0 : 1;
}
"""


@pytest.mark.parametrize(
    "product", ["na_product(place.at[a], rows.step[a])", "place.at[a] * rows.step[a]"]
)
def test_rows_beyond_the_largest_sample(tmp_path, product):
    """A product of 32 bits would overflow, which the second one shows."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    right = "na_product(place.at[a], rows.step[a])"
    assert 46341 * 46340 < MAX_ROWS < 46348 * 46340
    arrays = metal.source("arrays.h")
    assert right in arrays
    texts = [DIALECT, *(metal.source(f"{name}.h") for name in ("arithmetic", "window", "tile"))]
    (tmp_path / "rows.cpp").write_text("\n".join([*texts, arrays.replace(right, product), BEYOND]))
    command = [COMPILER, "-std=c++17", "-O1", "-fsanitize=undefined"]
    command += ["-fsanitize-undefined-trap-on-error", "-o", tmp_path / "rows"]
    subprocess.run([*command, tmp_path / "rows.cpp"], check=True)
    done = subprocess.run([tmp_path / "rows"], check=False)
    assert (done.returncode == 0) == (product == right)


@pytest.fixture(params=[-2, 0, 2], ids="{} units off".format)
def reciprocals(request, library):
    """As far off as Metal's fast division may be: 2.5 units in the last place."""
    library.off_by(request.param)
    yield library
    library.off_by(0)


def test_quotients_are_exact(reciprocals):
    rng = np.random.default_rng(0)
    dividends = np.concatenate([rng.integers(0, 2**31, 20_000), [0, 2**31 - 1]])
    divisors = np.concatenate([2 ** rng.uniform(0, 31, 20_000), [1, 2**31 - 1]]).astype(np.int64)
    for n, d in zip(dividends.tolist(), divisors.tolist(), strict=True):
        for close in (n, n // d * d, max(n // d * d - 1, 0)):
            assert reciprocals.quotient(close, d) == close // d, (close, d)


def test_small_quotients_are_exact(reciprocals):
    rng = np.random.default_rng(0)
    dividends = [*rng.integers(0, 2**20, 20_000).tolist(), 2**20 - 1]
    divisors = [*(2 ** rng.uniform(0, 20, 20_000)).astype(int).tolist(), 3]
    for n, d in zip(dividends, divisors, strict=True):
        for close in (n, n // d * d, max(n // d * d - 1, 0)):
            assert reciprocals.small_quotient(close, d) == close // d, (close, d)

"""What MLX is given of the kernels' text: all that they need, and little else."""

from __future__ import annotations

import pytest

from natten_zoo import metal
from natten_zoo.metal import HOPPER, KERNELS, MATRIX, NAX, SCALAR_4, TENSORS
from natten_zoo.metal.excerpt import NAME, _items, excerpt

HEADERS = [
    *[("metal", core) for core in (MATRIX, NAX, SCALAR_4)],
    *[("cuda", core) for core in (*TENSORS, HOPPER, SCALAR_4)],
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dialect", "core"), HEADERS, ids=str)
def test_whatever_is_mentioned_is_there(dialect, core, kernel):
    whole, body = metal.header(dialect, core), metal.body(kernel)
    header, short = excerpt(whole, body)
    declared = {name for item in _items(whole) for name in item.declares}
    kept = {name for item in _items(header) for name in item.declares}
    mentioned = set(NAME.findall(header + short))
    assert mentioned & declared <= kept
    assert len(header + short) < 0.67 * len(whole + body) and "//" not in header + short


def test_overloads_specialisations_and_what_has_no_name_stay():
    header = """#define NA_PLANE 0
#define WORD x  // for another's text
#define NA_ONE 1
#define NA_TWO 2
enum { NA_PARTS = NA_ONE };
template <typename T,
          int N>
struct na_unit {
  T e[N];
};
template <> struct na_unit<int, 1> { int e; };
NA_FN int na_f(int a) { return a; }
NA_FN int na_f(float a) {
  return int(a) + NA_TWO;
}
NA_FN int na_g(na_unit<int, 1> u) { return u.e; }
#if NA_PLANE > 0
NA_FN int na_f(long a) { return 0; }
#endif
static_assert(NA_PARTS == 1, "so");
"""
    kept, body = excerpt(header, "int a = na_f(1);  // na_g")
    assert body == "int a = na_f(1);"
    for text in (
        "WORD",
        "NA_ONE 1",
        "NA_TWO 2",
        "NA_PARTS = ",
        "(int a)",
        "float a",
        "static_assert",
    ):
        assert text in kept
    assert "na_unit" not in kept and "na_g" not in kept and "long a" not in kept
    kept, _ = excerpt(header, "na_g(x);")
    assert "typename T" in kept and "na_unit<int, 1> {" in kept and "na_f" not in kept

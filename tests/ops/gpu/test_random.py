"""Random problems through the emulated kernels: right numbers and not one fault reported."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from natten_zoo.metal import NAX
from natten_zoo.ops.gpu.device import current
from natten_zoo.ops.gpu.kernels import failures
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import (
    FAMILIES,
    MATRIX_2,
    MATRIX_4,
    Family,
    check_attention,
    check_unfused,
    random_cases,
    worst,
)

LIKE_OTHERS = (NAX, MATRIX_2, MATRIX_4)


def problems_of(
    families: Iterable[Family], count: int, sample: int, like_others: int
) -> pytest.MarkDecorator:
    """`count` problems of each family, slow where nearly each of them needs kernels of its own.

    Those with one kernel size share their kernels. Of the others there is a quick sample, too, and
    of cores that differ from another in one file, and of finer queries, one of `like_others`.
    """
    given = []
    for family in families:
        quick = count if family.kernel_size else sample
        if family.core in LIKE_OTHERS or family.finer:
            quick = min(quick, like_others)
        if 0 < quick < count:
            given.append(pytest.param(family, quick, id=f"{family}-sample"))
        marks = [pytest.mark.slow] if quick < count else []
        given.append(pytest.param(family, count, id=str(family), marks=marks))
    return pytest.mark.parametrize("family, count", given)


@problems_of(FAMILIES, 28, sample=2, like_others=8)
def test_attention(metal, family, count):  # noqa: F811
    for case in random_cases(family, seed=FAMILIES.index(family), count=count):
        wrong = worst(check_attention(case), family.dtype, max(family.head_dim, family.value_dim))
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())


# The separate products are for whole simdgroups, whatever a family asks for, and no finer queries.
# They use of a core what the fused ones use.
@problems_of([f for f in FAMILIES if f.core.whole and not f.finer], 12, sample=1, like_others=0)
def test_unfused(metal, family, count):  # noqa: F811
    for case in random_cases(family, seed=100 + FAMILIES.index(family), count=count):
        wrong = worst(check_unfused(case), family.dtype, max(family.head_dim, family.value_dim))
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())

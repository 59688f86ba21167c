"""Random problems through the emulated kernels: right numbers and not one fault reported."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from natten_zoo.ops.gpu.device import current
from natten_zoo.ops.gpu.kernels import failures
from tests.metal_emulator import record
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import (
    ATTENTION,
    FAMILIES,
    UNFUSED,
    Family,
    check_attention,
    check_unfused,
    random_cases,
    worst,
)


def problems_of(families: Iterable[Family], quick: Iterable[Family]) -> pytest.MarkDecorator:
    """All problems of each family, which is slow: up to 65 builds. Of some those that share one."""
    slow = [
        pytest.param(family, False, id=str(family), marks=pytest.mark.slow) for family in families
    ]
    alike = [pytest.param(family, True, id=f"{family}-alike") for family in quick]
    return pytest.mark.parametrize("family, alike", [*alike, *slow])


@problems_of(FAMILIES, quick=FAMILIES)
def test_attention(metal, family, alike):  # noqa: F811
    functions = ATTENTION if alike else ()
    with record() as launches:
        for case in random_cases(family, FAMILIES.index(family), 28, functions):
            channels = max(family.head_dim, family.value_dim)
            wrong = worst(check_attention(case), family.dtype, channels)
            assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())
    assert len(launches) >= 3 * 4
    for launch in launches:  # Apple's limits
        assert np.prod(launch.threadgroup) <= 256
        assert launch.threadgroup_bytes <= 32768


# The separate products are for whole simdgroups, whatever a family asks for, and no finer queries.
# They use of a core what the fused ones use: in a hurry, each number of axes and each dtype once.
WHOLE = [family for family in FAMILIES if family.core.whole and not family.finer]


@problems_of(WHOLE, quick=[FAMILIES[i] for i in (0, 2, 5, 9, 15)])
def test_unfused(metal, family, alike):  # noqa: F811
    functions = UNFUSED if alike else ()
    for case in random_cases(family, 100 + FAMILIES.index(family), 12, functions):
        wrong = worst(check_unfused(case), family.dtype, max(family.head_dim, family.value_dim))
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())

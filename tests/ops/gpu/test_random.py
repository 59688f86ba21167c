"""Random problems through the emulated kernels: right numbers and not one fault reported."""

from __future__ import annotations

import pytest

from natten_zoo.ops.gpu.device import current
from natten_zoo.ops.gpu.kernels import failures
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401

from .problems import FAMILIES, check_attention, check_unfused, random_cases, worst


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_attention(metal, family):  # noqa: F811
    for case in random_cases(family, seed=FAMILIES.index(family), count=28):
        wrong = worst(check_attention(case), family.dtype)
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())


# The separate products are for whole simdgroups, whatever a family asks for.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.core.whole], ids=str)
def test_unfused(metal, family):  # noqa: F811
    for case in random_cases(family, seed=100 + FAMILIES.index(family), count=12):
        wrong = worst(check_unfused(case), family.dtype)
        assert wrong is None, f"{wrong} for {case.problem} {case.lengths}"
    assert not failures(current())

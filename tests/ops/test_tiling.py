"""The pure tier's tables."""

from __future__ import annotations

import doctest

from natten_zoo.ops.pure import tiling


def test_examples():
    found = doctest.testmod(tiling)
    assert found.attempted and not found.failed

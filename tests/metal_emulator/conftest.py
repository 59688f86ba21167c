"""All tests of the emulator need a compiler."""

from __future__ import annotations

import pytest

from tests.metal_emulator.fixtures import toolchain  # noqa: F401


@pytest.fixture(autouse=True)
def _needs_toolchain(toolchain: None) -> None:  # noqa: F811
    pass

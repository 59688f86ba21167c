"""Fixtures for tests that need Metal: they run in the emulator, or are skipped with a reason.

Import what you use: `from tests.metal_emulator.fixtures import metal  # noqa: F401`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import metal_emulator


@pytest.fixture(scope="session")
def toolchain() -> None:
    """Skips where Metal sources cannot be compiled, and says how to change that."""
    reason = metal_emulator.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def metal(toolchain: None) -> Iterator[None]:
    """`mx.fast.metal_kernel` is the emulator, which raises on every fault.

    It doesn't count on lanes to come together again behind a branch: compilers have bugs there.
    """
    with metal_emulator.install(reconverges=False):
        yield

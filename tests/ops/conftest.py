import pytest

from natten_zoo.ops.gpu.device import platform
from tests.metal_emulator.fixtures import metal, toolchain  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the GPU's tier where a GPU runs them, before markers select."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("tier") in ("fast_metal", "cuda") and platform() is not None:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def gpu_tier_in_the_emulator(request: pytest.FixtureRequest) -> None:
    """Without a GPU, tests of the GPU's tier run in the emulator, or say what they lack."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("tier") == "fast_metal" and platform() is None:
        request.getfixturevalue("metal")

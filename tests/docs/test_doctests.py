"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import natten_zoo

# In a clone these lie beside the package's folder.
BESIDE = ("ops", "metal", "configs")


def modules():
    """The names of all modules of the package."""
    yield "natten_zoo"
    folders = {"natten_zoo": [str(Path(natten_zoo.__file__).parent)]}
    folders |= {f"natten_zoo.{n}": getattr(natten_zoo, n).__path__ for n in BESIDE}
    for name, path in folders.items():
        yield name
        for info in pkgutil.walk_packages(path, f"{name}."):
            if info.name != "natten_zoo.__main__":
                yield info.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_modules_are_found_at_the_top_and_in_packages():
    assert {"natten_zoo.tasks.sliding", "natten_zoo.viz.figures"} <= set(modules())


def test_the_public_operators_have_examples():
    found = doctest.DocTestFinder().find(importlib.import_module("natten_zoo.ops.functional"))
    assert {t.name.rsplit(".", 1)[-1] for t in found if t.examples} >= {"na1d", "na2d", "na3d"}

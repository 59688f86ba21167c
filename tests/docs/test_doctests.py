"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import natten_zoo

ROOMS = ("ops", "metal", "configs", "layers", "models", "pretrained", "data", "training", "cli")


def modules():
    """The names of all modules of the package."""
    yield "natten_zoo"
    for info in pkgutil.iter_modules(natten_zoo.__path__[:1], "natten_zoo."):
        if info.name != "natten_zoo.__main__" and not info.ispkg:
            yield info.name
    for room in ROOMS:
        package = importlib.import_module(f"natten_zoo.{room}")
        yield package.__name__
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield info.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_public_operators_have_examples():
    found = doctest.DocTestFinder().find(importlib.import_module("natten_zoo.ops.functional"))
    assert {t.name.rsplit(".", 1)[-1] for t in found if t.examples} >= {"na1d", "na2d", "na3d"}

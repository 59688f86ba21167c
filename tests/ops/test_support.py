"""Tiers say what they support, and are asked for nothing else."""

from dataclasses import dataclass, fields, replace

import mlx.core as mx
import pytest

from natten_zoo import ops
from natten_zoo.ops import (
    Neighborhood,
    backend,
    dense,
    functional,
    gpu,
    known,
    native,
    packed,
    pure,
    unfused,
    varlen,
)
from natten_zoo.ops.problem import DTYPES, Problem
from natten_zoo.ops.tier import BASIC, Support

FACES = (gpu, native, pure)


@dataclass(frozen=True)
class Tomorrow(Problem):
    """A problem of a later version, with an option that no tier was told of."""

    softcap: float = 0.0

    __hash__ = Problem.__hash__


@dataclass(frozen=True)
class Slanted(Neighborhood):
    """A neighborhood of a later version."""

    slant: int = 0


def problem(kind=Problem, hood=None, **options):
    hood = hood or Neighborhood.of(1, 3)
    return kind(hood, 1, (9,), 2, 2, 8, 8, 1.0, mx.float32, **options)


@pytest.mark.parametrize("name", backend.TIERS)
def test_a_field_that_no_tier_knows_is_refused_by_every_tier(name):
    tier = backend._tier(name)
    assert tier.SUPPORT.why_not(problem(Tomorrow)) is None  # as if it were not there
    capped = problem(Tomorrow, softcap=30.0)
    assert tier.SUPPORT.why_not(capped) == "it does not support 'softcap'"
    assert backend.why_not(name, capped) is not None


@pytest.mark.parametrize("support", [*(f.SUPPORT for f in FACES), dense.WHOLE])
def test_so_is_one_of_the_neighborhood(support):
    flat, slanted = (Slanted((3,), (1,), (1,), (1,), (False,), slant) for slant in (0, 1))
    assert support.why_not(problem(hood=flat)) is None
    assert support.why_not(problem(hood=slanted)) == "it does not support 'slant'"


@pytest.fixture
def softcap(monkeypatch):
    """The operators as they would be if only the problem had got a new field."""
    monkeypatch.setattr(known, "_known", {})

    def capped(make):
        def problem(*args, **options):
            made = make(*args, **options)
            values = {field.name: getattr(made, field.name) for field in fields(made)}
            return Tomorrow(**values, softcap=30.0)

        return problem

    for module in (functional, packed, unfused, varlen):
        monkeypatch.setattr(module, "attention_problem", capped(module.attention_problem))


@pytest.mark.parametrize("kernel_size", [3, 9], ids=["windows", "covers the map"])
def test_no_operator_ignores_it(softcap, kernel_size):
    x = mx.zeros((1, 9, 2, 8))
    message = r"^\[na1d\] backend 'auto' cannot run this: .*pure: it does not support 'softcap'"
    with pytest.raises(RuntimeError, match=message):
        ops.na1d(x, x, x, kernel_size)
    for call in (
        lambda: ops.na1d_qk(x, x, kernel_size),
        lambda: ops.na1d_varlen(x, x, x, [7], kernel_size),
        lambda: ops.na1d_qkvpacked(mx.stack([x] * 3, -3), kernel_size),
    ):
        with ops.use_backend("pure"), pytest.raises(RuntimeError, match="support 'softcap'"):
            call()


def test_additional_keys_do_not_ignore_it(softcap, monkeypatch):
    """Even if every tier knew it: keys without a place are attended to apart."""
    knowing = replace(pure.SUPPORT, features=pure.SUPPORT.features | {"softcap"})
    monkeypatch.setattr(pure, "SUPPORT", knowing)
    # What a tier supports never changes, so it is asked once: another batch is another problem.
    x, more = mx.zeros((3, 9, 2, 8)), mx.zeros((3, 4, 2, 8))
    with ops.use_backend("pure"):
        assert ops.na1d(x, x, x, 3).shape == x.shape
        with pytest.raises(ValueError, match=r"'additional_keys' must be None .* 'softcap'"):
            ops.na1d(x, x, x, 3, additional_keys=more, additional_values=more)


def test_dtypes_and_limits():
    support = Support(frozenset(), dtypes=(mx.float16,), limits=(("head_dim", 4),))
    small = replace(problem(), dtype=mx.float16, head_dim=4)
    assert support.why_not(small) is None
    assert (
        support.why_not(replace(small, dtype=mx.float32)) == "it does not support mlx.core.float32"
    )
    assert support.why_not(replace(small, head_dim=5)) == "head_dim is larger than 4"
    assert support.why_not(replace(small, has_rpb=True)) == "it does not support 'has_rpb'"
    dilated = replace(small, neighborhood=Neighborhood.of(1, 3, dilation=2))
    assert support.why_not(dilated) == "it does not support 'dilation'"


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.NAME)
def test_every_tier_supports_every_field_of_today(face):
    names = {field.name for kind in (Problem, Neighborhood) for field in fields(kind)}
    assert face.SUPPORT.features == names - BASIC
    assert face.SUPPORT.dtypes == DTYPES

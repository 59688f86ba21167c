"""Random cases of the whole parameter space on every tier, against float64.

300 cases, the same in every run, and 2,100 of those marked slow; `--sweep N` runs N new ones in
place of the 300. A failure shrinks to its smallest case.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.ops.cases import (
    CASES,
    TOLERANCE,
    attention_error,
    av_error,
    cases,
    expected_attention,
    qk_error,
    tiers,
)

SHARES = {"attention": 4 / 7, "varlen": 1 / 7, "qk": 1 / 7, "av": 1 / 7}
SAMPLE_AND_ALL = pytest.mark.parametrize("count", [300, pytest.param(2100, marks=pytest.mark.slow)])


def run(check, config, name, count):
    """Runs `check(case)` on this sweep's share of the cases."""
    drawn = config.getoption("--sweep") if count == 300 else None
    how = settings(
        max_examples=round((drawn or count) * SHARES[name]),
        derandomize=drawn is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    how(given(cases(lengths=name == "varlen"))(check))()


@SAMPLE_AND_ALL
@pytest.mark.parametrize("name", ["attention", "varlen"])
def test_attention(name, count, pytestconfig):
    def check(case):
        for tier in tiers(case):
            worst = attention_error(case, tier)
            assert max(worst.values()) < TOLERANCE, (tier, worst)

    run(check, pytestconfig, name, count)


@SAMPLE_AND_ALL
@pytest.mark.parametrize("name, error", [("qk", qk_error), ("av", av_error)])
def test_unfused(name, error, count, pytestconfig):
    def check(case):
        for tier in tiers(case):
            worst = error(case, tier)
            assert max(worst) < TOLERANCE, (tier, worst)

    run(check, pytestconfig, name, count)


def test_the_comparison_sees_a_small_mistake(monkeypatch):
    case = CASES["2-D"]
    wrong = expected_attention(case)
    wrong[2] = wrong[2] * 1.001
    monkeypatch.setattr("tests.ops.cases.expected_attention", lambda case: wrong)
    assert attention_error(case, "pure")["query"] > TOLERANCE


def test_the_pure_tier_runs_everything():
    assert all("pure" in tiers(case) for case in CASES.values())

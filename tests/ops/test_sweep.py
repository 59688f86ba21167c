"""Random cases of the whole parameter space on every tier, against float64.

2,100 cases, the same in every run; ``--sweep N`` runs N new ones. A failure shrinks to its smallest
case.
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


def run(check, config, name):
    """Runs ``check(case)`` on this sweep's share of the cases."""
    count = config.getoption("--sweep")
    how = settings(
        max_examples=round((count or 2100) * SHARES[name]),
        derandomize=count is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    how(given(cases(lengths=name == "varlen"))(check))()


@pytest.mark.parametrize("name", ["attention", "varlen"])
def test_attention(name, pytestconfig):
    def check(case):
        for tier in tiers(case):
            worst = attention_error(case, tier)
            assert max(worst.values()) < TOLERANCE, (tier, worst)

    run(check, pytestconfig, name)


@pytest.mark.parametrize("name, error", [("qk", qk_error), ("av", av_error)])
def test_unfused(name, error, pytestconfig):
    def check(case):
        for tier in tiers(case):
            worst = error(case, tier)
            assert max(worst) < TOLERANCE, (tier, worst)

    run(check, pytestconfig, name)


def test_the_comparison_sees_a_small_mistake(monkeypatch):
    case = CASES["2-D"]
    wrong = expected_attention(case)
    wrong[2] = wrong[2] * 1.001
    monkeypatch.setattr("tests.ops.cases.expected_attention", lambda case: wrong)
    assert attention_error(case, "pure")["query"] > TOLERANCE


def test_the_pure_tier_runs_everything():
    assert all("pure" in tiers(case) for case in CASES.values())

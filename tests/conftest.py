import os

import pytest

MUST_RUN = bool(os.environ.get("NATTEN_ZOO_MUST_RUN"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweep",
        type=int,
        help="random operator cases, new ones in every run (default: the same 2,100 in every run)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Where everything must run, a skipped test is a failed one.

    Unless it needs a GPU, or trained weights that are not in the repository.
    """
    report = yield
    excused = item.get_closest_marker("gpu") or item.get_closest_marker("weights")
    if MUST_RUN and report.skipped and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, but here it must run: {report.longrepr}"
    return report

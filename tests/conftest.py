import os

import mlx.core as mx
import pytest

mx.default_stream(mx.cpu)  # number 0, which exported functions name, whatever threads a test starts

MUST_RUN = bool(os.environ.get("NATTEN_ZOO_MUST_RUN"))
EXCUSED = ("gpu", "weights", "natten", "asahi")  # what they need .ci/run does not bring
SLOW_NOTEBOOKS = ("03_finetune.ipynb", "09_detect.ipynb", "10_naf.ipynb", "11_emoji.ipynb")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweep",
        type=int,
        help="random operator cases, new ones in every run (default: the same 300 in every run)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks notebooks, which can't say so themselves, before markers select."""
    for item in items:
        if item.path.name in SLOW_NOTEBOOKS:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Where everything must run, a skipped test is a failed one, unless it is excused."""
    report = yield
    excused = any(map(item.get_closest_marker, EXCUSED))
    if MUST_RUN and report.skipped and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, but here it must run: {report.longrepr}"
    return report

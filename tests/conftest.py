import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweep",
        type=int,
        help="random operator cases, new ones in every run (default: the same 2,100 in every run)",
    )

"""The table of `make test-faults`."""

import os

import pytest

FULL = os.environ.get("FAULTS") == "full"
"""Whether each test makes all its tries (`make test-faults`) or the few that `make test` has time for."""
ROWS = pytest.StashKey[dict[str, list[str]]]()


@pytest.fixture
def tries():
    """Choose a number of tries: the first with `make test-faults`, the second with `make test`."""
    return lambda full, short: full if FULL else short


@pytest.fixture
def report(request):
    """Add a figure to a row of the table: `report("row", "20 of 20 equal")`. Called after the checks have passed."""
    rows = request.config.stash.setdefault(ROWS, {})
    return lambda row, figure: rows.setdefault(row, []).append(figure)


def pytest_terminal_summary(terminalreporter, config):
    """Print the table behind the tests."""
    rows = config.stash.get(ROWS, {})
    if FULL and rows:
        terminalreporter.section("faults")
        for row, figures in rows.items():
            terminalreporter.write_line(f"| {row} | {'; '.join(figures)} |")

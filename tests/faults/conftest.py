"""How many faults the default run takes of each kind, and the count of those that were tried."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

ALL = os.environ.get("JAXMLP_FAULTS") == "all"
"""Whether every fault is tried, in place of a few of each kind."""
FEW = 2


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[Counter[str]], None]:
    """Called with how many faults ended how; the sums are told at the end of the session."""
    return lambda counts: record_property("faults", dict(counts))


def some[T](choices: Sequence[T], few: int = FEW) -> Sequence[T]:
    """All of the choices, or a few that are spread evenly."""
    return choices if ALL else choices[len(choices) // (2 * few) :: -(-len(choices) // few)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many faults were tried, by the test."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, counts in getattr(report, "user_properties", ()):
                if name == "faults" and report.when == "call":
                    told = ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
                    terminalreporter.write_line(f"{report.nodeid}: {sum(counts.values())} faults: {told}")

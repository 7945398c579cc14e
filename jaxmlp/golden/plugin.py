"""What does pytest see of golden bits? Three options, one marker, two fixtures, and a summary at the end.

Pytest loads this file in every environment that has jaxmlp. So it imports only pytest and modules that pytest has
already loaded. The first test that uses the fixture imports NumPy; only the tests themselves import JAX.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from jaxmlp.golden.tally import Tally, id_in_file

if TYPE_CHECKING:
    from jaxmlp.golden.check import GoldenBits

_TALLY = pytest.StashKey[Tally]()
_SUMMARY = pytest.StashKey[list[str]]()
_CHECKS = pytest.StashKey["GoldenBits"]()
_SENT = "jaxmlp_golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options to `pytest --help`."""
    group = parser.getgroup("golden bits", "golden bits (jaxmlp)")
    group.addoption(
        "--golden-update", action="store_true", help="record the bits that golden_bits.check sees; compare nothing"
    )
    group.addoption(
        "--golden-values",
        action="store_true",
        help="with --golden-update: also store the arrays, so that a failure shows index, values and distance",
    )
    group.addoption(
        "--golden-strict", action="store_true", help="fail, rather than skip, on a platform without a record"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse options that do not fit together."""
    config.addinivalue_line("markers", "portable: golden_bits keeps one record of this test for all machines")
    if config.getoption("golden_values") and not config.getoption("golden_update"):
        raise pytest.UsageError("--golden-values needs --golden-update: give both")
    config.stash[_TALLY] = Tally()


@pytest.fixture(scope="session")
def golden_facts() -> dict[str, Any]:
    """Your own facts that your bits depend on, as JSON values. Override this fixture. Default: no facts."""
    return {}


@pytest.fixture
def golden_bits(request: pytest.FixtureRequest, golden_facts: dict[str, Any]) -> GoldenBits:
    """`golden_bits.check(tree, name=None)` fails unless the tree has the bits of the record beside the test."""
    from jaxmlp.golden.check import GoldenBits

    config = request.config
    checks = request.node.stash[_CHECKS] = GoldenBits(
        test_file=request.node.path,
        test=id_in_file(request.node),
        portable=request.node.get_closest_marker("portable") is not None,
        facts=golden_facts,
        update=config.getoption("golden_update"),
        values=config.getoption("golden_values"),
        strict=config.getoption("golden_strict"),
        shown_from=config.rootpath,
        tally=config.stash[_TALLY],
    )
    return checks


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    """Note the collected files, including files without tests, and whether collection failed anywhere."""
    report = yield
    tally = collector.config.stash[_TALLY]
    if report.failed:
        tally.in_part = True
    elif isinstance(collector, pytest.File):
        tally.file(collector.path)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, Any, Any]:
    """Note every test that exists, before `-k`, `-m` and other plugins deselect some."""
    for item in items:
        config.stash[_TALLY].file(item.path).exist.add(id_in_file(item))
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a pass into a skip if a check had no record for this platform.

    The test has run to its end by then, so the skip hides no other failure.
    """
    report = yield
    if call.when == "call":
        checks = item.stash.get(_CHECKS, None)
        tests = item.config.stash[_TALLY].file(item.path)
        tests.ran.add(id_in_file(item))
        if report.passed:
            tests.passed.add(id_in_file(item))
        if report.passed and checks and checks.unknown:
            path, line, _ = item.reportinfo()
            report.outcome = "skipped"
            report.longrepr = (str(path), (line or 0) + 1, f"Skipped: {'; '.join(checks.unknown)}")
    elif report.skipped:
        item.config.stash[_TALLY].file(item.path).ran.add(id_in_file(item))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a worker of pytest-xdist saw. A crashed worker sends nothing; its tests count as not run."""
    node.config.stash[_TALLY].add(getattr(node, "workeroutput", {}).get(_SENT, {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker, send what it saw. Elsewhere, find the records that no test uses any more."""
    config = session.config
    tally = config.stash[_TALLY]
    tally.forget_others()
    if hasattr(config, "workeroutput"):
        config.workeroutput[_SENT] = tally.as_json()
        return
    if config.option.collectonly or not tally.tests:
        return
    # Imported late, because it loads NumPy.
    from jaxmlp.golden.stale import tidy

    if any("::" in argument for argument in config.args) or config.getoption("lf", False):
        tally.in_part = True
    config.stash[_SUMMARY] = tidy(tally, update=config.getoption("golden_update"), shown_from=config.rootpath)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was recorded, moved and removed, and which records no test uses."""
    if lines := config.stash.get(_SUMMARY, []):
        terminalreporter.section("golden bits")
        for line in lines:
            terminalreporter.write_line(line)

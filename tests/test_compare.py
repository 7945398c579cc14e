"""Which rows are called slower: simulated tables, and the rules one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from refusals import refused

from jaxmlp.bench.compare import P_MAX, check_processes, compare_benchmarks, holm, judge, needed_processes
from jaxmlp.errors import UsageError

ROWS, PROCESSES, ROUNDS = 20, 10, 10
TABLES = 40


def table(rng: np.random.Generator) -> dict[str, list[float]]:
    """One benchmark of the same program: each row's median in each process, in seconds.

    Supposed: a run is 1 % faster or slower as a whole and 0.5 % by row, a process 5 % and 1 %; samples of a process
    spread by 2 % and hang together (0.5 from one to the next); one process and one sample in fifty is disturbed, by
    30 % on average.
    """
    shape = (ROUNDS, PROCESSES, ROWS + 1)
    run = rng.normal(0, 0.01) + rng.normal(0, 0.005, shape[2])
    process = rng.normal(0, 0.05, (PROCESSES, 1)) + rng.normal(0, 0.01, shape[1:]) + strays(rng, shape[1:])
    samples = rng.normal(0, 0.02, shape)
    for before, after in itertools.pairwise(samples):
        after *= np.sqrt(1 - 0.5**2)
        after += 0.5 * before
    medians = np.median(np.exp(run + process + samples + strays(rng, shape)), axis=0)
    return {str(row): list(1e-3 * medians[:, row]) for row in range(shape[2])}


def strays(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return (rng.random(shape) < 0.02) * rng.exponential(0.3, shape)


def judged(base: dict[str, list[float]], here: dict[str, list[float]]) -> dict[str, str]:
    plain = str(ROWS)
    return {found.key: found.verdict for found in judge(base, here, limit=0.05, device=[plain], plain=plain).rows}


def test_hardly_a_table_of_equal_programs_has_a_row_called_different_and_a_slow_down_of_a_tenth_is_found() -> None:
    rng = np.random.default_rng(0)
    false, unstable, found = 0, 0, 0
    for _ in range(TABLES):
        base, here = table(rng), table(rng)
        verdicts = judged(base, here)
        false += bool({"slower", "faster"} & set(verdicts.values()))
        unstable += sum(verdict == "unstable" for verdict in verdicts.values())
        here["7"] = [1.1 * seconds for seconds in here["7"]]
        found += judged(base, here)["7"] == "slower"
    assert false <= P_MAX * TABLES
    assert unstable <= 0.1 * ROWS * TABLES
    assert found >= 0.9 * TABLES


QUIET = [1.0 + number / 1000 for number in range(10)]


@pytest.mark.parametrize(
    ("base", "factor", "verdict"),
    [
        (QUIET, 1.0, "same"),
        (QUIET, 1.04, "same"),
        (QUIET, 1.06, "slower"),
        (QUIET, 0.9, "faster"),
        ([1.0, 1.43] * 5, 1.0, "unstable"),
        ([1.0, 1.43] * 5, 1.1, "unstable"),
        ([1.0, 1.43] * 5, 2.0, "slower"),
        ([*QUIET[:9], 3.0], 1.1, "slower"),
    ],
)
def test_a_row_differs_beyond_the_limit_and_the_spread_of_its_own_processes(
    base: list[float], factor: float, verdict: str
) -> None:
    here = [factor * seconds * (1 + 1e-6 * number) for number, seconds in enumerate(base, 1)]
    (found,) = judge({"step": base}, {"step": here}, limit=0.05).rows
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(factor, rel=1e-4)


def test_rows_are_relative_to_a_plain_step_which_shows_how_slow_the_device_is() -> None:
    base = {"step": QUIET, "plain": QUIET, "product": QUIET}
    for step, plain, verdict in (
        (1.2, 1.2, "same"),
        (1.2, 1.0, "slower"),
        (1.0, 0.8, "slower"),
        (1.2, 1.4, "faster"),
    ):
        here = {"step": [step * second for second in QUIET], "plain": [plain * second for second in QUIET]}
        here |= {"product": [3 * second for second in QUIET]}  # Other rows of the device change nothing.
        (found, *device), device_ratio = judge(base, here, limit=0.05, device=["plain", "product"], plain="plain")
        assert [found.verdict, *(row.verdict for row in device)] == [verdict, "device", "device"]
        assert found.ratio == pytest.approx(step / plain)
        assert [*(row.ratio for row in device), device_ratio] == pytest.approx([plain, 3, plain])


def test_a_processor_that_is_slow_in_some_processes_changes_no_verdict() -> None:
    slow = np.array([1.0, 1.0, 1.3, 1.0, 1.2, 1.0, 1.4, 1.1, 1.0, 1.0])
    base = {name: list(np.asarray(QUIET) * slow) for name in ("step", "plain")}
    here = {name: list(np.asarray(QUIET) * slow[::-1]) for name in ("step", "plain")}
    slowed = here | {"step": [1.1 * second for second in here["step"]]}
    found = [judge(base, each, limit=0.05, device=["plain"], plain="plain").rows[0] for each in (here, slowed)]
    assert [each.verdict for each in found] == ["same", "slower"]
    assert found[1].ratio == pytest.approx(1.1, rel=0.01)
    assert found[0].spread < 0.02
    assert judge(base, slowed, limit=0.05).rows[0].verdict == "unstable"  # Without a plain step.


def test_a_difference_within_the_spread_of_a_rows_own_processes_is_unstable_though_no_process_overlaps() -> None:
    base, here = {"step": [1.0] * 5 + [1.3] * 5}, {"step": [1.31] * 10}
    jitter = 1 + np.arange(10) / 1e6
    (found,) = judge(*({"step": list(jitter * times["step"])} for times in (base, here)), limit=0.05).rows
    assert (found.verdict, found.effect) == ("unstable", 1.0)


def test_a_difference_that_neighbours_could_make_is_unstable() -> None:
    here = {"step": [1.3 * second for second in QUIET]}
    found = [judge({"step": QUIET}, here, limit=0.05, load_factor=factor).rows[0] for factor in (1.0, 1.2, 1.4)]
    assert [each.verdict for each in found] == ["slower", "slower", "unstable"]


def test_holms_step_down_is_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("rows", [1, 20, 100])
def test_the_fewest_processes_show_one_row_of_so_many_and_one_fewer_do_not(rows: int) -> None:
    verdicts = []
    for processes in (needed_processes(rows), needed_processes(rows) - 1):
        same = {str(row): list(1 + np.arange(processes) / 1e4) for row in range(rows)}
        slow = same | {"0": [2 * second for second in same["0"]]}
        verdicts.append(judge(same, slow, limit=0.05).rows[0].verdict)
    assert verdicts == ["slower", "unstable"]


def document(process_s: list[float], **binding: str) -> dict[str, Any]:
    facts = {"binding": {"device_kind": "cpu", "isa": "avx2", **binding}, "not_binding": {"devices": 1, "threads": 2}}
    rows = [{"key": what, "what": what, "process_s": process_s} for what in ("step", "plain step")]
    return {"suite": "quick", "manifest": facts, "rows": rows, "noise": {"load_factor": 1.0}}


def test_benchmarks_of_other_devices_are_compared_only_when_asked_to() -> None:
    base, here = document(QUIET), document(QUIET, device_kind="NVIDIA H100")
    with refused(UsageError, "device_kind", "cpu", "NVIDIA H100", "--across-devices"):
        compare_benchmarks(base, here, limit=0.05)
    assert compare_benchmarks(base, here, limit=0.05, across_devices=True).rows[0].verdict == "same"


def test_benchmarks_without_a_row_in_common_are_refused() -> None:
    other = document(QUIET)
    del other["rows"][0]
    other["rows"][0]["key"] = "epoch"
    with refused(UsageError, "quick"):
        compare_benchmarks(document(QUIET), other, limit=0.05)


def test_a_base_without_the_plain_step_by_which_times_are_divided_is_refused() -> None:
    base = document(QUIET)
    del base["rows"][1]
    with refused(UsageError, "plain step", "jaxmlp bench --json"):
        compare_benchmarks(base, document(QUIET), limit=0.05)


def test_processes_that_can_show_nothing_are_refused_with_the_number_that_can() -> None:
    few = document([1.0, 1.1])
    with refused(UsageError, 2, "--processes 8"):
        compare_benchmarks(few, few, limit=0.05)
    with refused(UsageError, "--processes 8"):
        check_processes(few, 2)
    check_processes(few, 8)

"""Whether one benchmark's rows are slower than another's: a rank test a row, and how large the difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmlp.bench.spread import Spread
from jaxmlp.errors import UsageError

P_MAX = 0.01
"""Chance that any row of an equal benchmark is called different."""
DEVICE = ("device_kind", "isa", "platform_version")
"""Facts of the manifest that make a device."""


class Difference(NamedTuple):
    """Of one row."""

    key: str
    base_s: float
    """Median."""
    here_s: float
    ratio: float
    """Of the medians, here over base."""
    effect: float
    """Cliff's delta: 1 where every time here is longer than every one of the base, -1 where every one is shorter."""
    p: float
    """Of the verdict's direction beyond the limit, times the number of rows (Bonferroni), at most 1."""
    verdict: str
    """slower, faster or same."""


def compare_times(key: str, base: Sequence[float], here: Sequence[float], *, limit: float, rows: int) -> Difference:
    """Whether `here` is slower, or faster, than `base` by more than a part `limit`.

    A Mann-Whitney test of `here` against `base * (1 + limit)`, one-sided, and the other way round.

    Args:
        key: The row's.
        base: Seconds.
        here: Seconds.
        limit: A part: 0.05 is 5 %.
        rows: How many are tested, for Bonferroni's correction.
    """
    from scipy.stats import mannwhitneyu

    slower = mannwhitneyu(here, [value * (1 + limit) for value in base], alternative="greater").pvalue
    faster = mannwhitneyu([value * (1 + limit) for value in here], base, alternative="less").pvalue
    wins = mannwhitneyu(here, base).statistic
    p = min(1.0, float(min(slower, faster)) * rows)
    verdict = "same" if p >= P_MAX else "slower" if slower < faster else "faster"
    medians = Spread.of(base).median, Spread.of(here).median
    effect = 2 * float(wins) / (len(base) * len(here)) - 1
    return Difference(key, *medians, medians[1] / medians[0], effect, p, verdict)


def compare(
    base: Mapping[str, Any], here: Mapping[str, Any], *, limit: float, across_devices: bool = False
) -> list[Difference]:
    """The rows that both documents of `run_suite` have, in this one's order.

    Raises:
        UsageError: Their devices differ, unless `across_devices`; or they share no row.
    """
    if not across_devices and (differing := _devices(base, here)):
        hint = "Add --across-devices to compare them all the same"
        raise UsageError(f"compare: the devices differ: {'; '.join(differing)}. {hint}")
    before = {row["key"]: row["seconds"] for row in base["rows"]}
    shared = [row for row in here["rows"] if row["key"] in before]
    if not shared:
        raise UsageError(f"compare: no row of suite {here['suite']} is in the base, which is of suite {base['suite']}")
    return [
        compare_times(row["key"], before[row["key"]], row["seconds"], limit=limit, rows=len(shared)) for row in shared
    ]


def _devices(base: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The facts in which they differ: `device_kind: cpu there, NVIDIA H100 here`."""
    facts = [
        {name: document["manifest"]["binding"].get(name) for name in DEVICE}
        | {"devices": document["manifest"]["not_binding"].get("devices")}
        | {"threads": document["manifest"]["not_binding"].get("threads")}
        for document in (base, here)
    ]
    return [
        f"{name}: {facts[0][name]} there, {facts[1][name]} here"
        for name in facts[0]
        if facts[0][name] != facts[1][name]
    ]

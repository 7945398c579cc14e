"""Which rows of a benchmark are slower than another benchmark's?

A process is the unit. Samples of one process share its memory layout, its clock and its moment, so that twenty of them
are hardly more than one: a rank test over samples called rows of equal programs different. A row of a process is
therefore one value, the median of its samples, and two benchmarks are two groups of processes.

A row is `slower` where three things hold, and `faster` the other way round:

1. Shown: Mann and Whitney's exact two-sided test over processes, with Holm's step-down over all rows of the table,
   gives p < `P_MAX`. If the two groups of processes are drawn alike, at most that part of all tables has any such row,
   however the rows depend on each other. All rows have the same number of processes, and fewer than `needed_processes`
   are refused: so no row is tested that could never differ, and none weakens the others for nothing.
2. Large: its ratio of medians is beyond the limit, also after division by the ratio of the device's own rows, such as
   product and copy. Two benchmarks are never drawn quite alike: between them a clock or a neighbour changes by a per
   cent or two, which a test finds sooner or later. A change of the machine is forgiven up to the limit, not beyond it.
3. Larger than the noise: its ratio is beyond the spread of its own processes in either benchmark, their interquartile
   range over their median; and beyond what neighbours could do, who took a part of the cores (`noise.neighbours`).

A row that is neither is `unstable` where it spreads by more than `WIDE` and the limit, or where rule 3 alone keeps it
from a verdict: nothing can be said of it. The device's own rows are not judged, and have the verdict `device`.
`tests/test_compare.py` simulates whole tables, with noise of a run, of a process and within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from math import comb
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.bench.spread import Spread
from jaxmlp.errors import UsageError

P_MAX = 0.05
"""Chance that any row of a table of equal programs is shown to differ."""
WIDE = 0.05
"""Spread of a row's processes above which the row is unstable, if the limit is not larger."""
DEVICE_ROWS = ("product", "products", "copy", "dispatch", "to device", "from device", "psum", "all gather",
               "reduce scatter", "all to all")  # fmt: skip
"""Rows that run nothing of this program: they tell what the device itself did."""
DEVICE = ("device_kind", "isa", "platform_version")
"""Facts of the manifest that make a device."""


class Difference(NamedTuple):
    """One row here beside the same row of the base."""

    key: str
    base_s: float
    """Median of the base's processes."""
    here_s: float
    """Median of the processes here."""
    ratio: float
    """`here_s` divided by `base_s`."""
    effect: float
    """Cliff's delta over processes: 1 if each one here is slower than each one of the base, -1 if each is faster."""
    p: float
    """Two-sided, adjusted by Holm's step-down for all rows of the table; 1 for the device's own rows."""
    spread: float
    """Interquartile range over median of the row's processes, the larger of the two benchmarks."""
    verdict: str
    """slower, faster, same, unstable or device."""


def judge(
    base: Mapping[str, Sequence[float]],
    here: Mapping[str, Sequence[float]],
    *,
    limit: float,
    device: Sequence[str] = (),
    neighbours: float = 1.0,
) -> list[Difference]:
    """Every row of `here`, by the rule that this module states.

    Args:
        base: By row, the seconds of each process.
        here: The same rows.
        limit: The smallest difference that matters, as a part: 0.05 is 5 %.
        device: The rows that are the device's own.
        neighbours: How many times as long others could make a row, in either benchmark.
    """
    from scipy.stats import mannwhitneyu

    ratios = {key: Spread.of(here[key]).median / Spread.of(base[key]).median for key in here}
    drift = np.median([ratios[key] for key in device]) if device else 1.0
    forgiven = float(np.clip(drift, 1 / (1 + limit), 1 + limit))
    judged = [key for key in here if key not in device]
    tests = {key: mannwhitneyu(here[key], base[key], method="exact") for key in judged}
    adjusted = dict(zip(judged, holm([float(tests[key].pvalue) for key in judged]), strict=True))
    found = []
    for key, ratio in ratios.items():
        spreads = [Spread.of(times[key]) for times in (base, here)]
        spread = max(one.iqr / one.median for one in spreads)
        p, noise = adjusted.get(key, 1.0), max(1 + spread, neighbours)
        least, most = sorted((ratio, ratio / forgiven))
        size = least if ratio > 1 else 1 / most
        differs = p < P_MAX and size > 1 + limit
        if key in device:
            verdict = "device"
        elif differs and size > noise:
            verdict = "slower" if ratio > 1 else "faster"
        else:
            verdict = "unstable" if differs or spread > max(limit, WIDE) else "same"
        wins = sum(float(one > other) + 0.5 * (one == other) for one in here[key] for other in base[key])
        effect = 2 * wins / (len(here[key]) * len(base[key])) - 1
        found.append(Difference(key, spreads[0].median, spreads[1].median, ratio, effect, p, spread, verdict))
    return found


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down, in their order.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in adjusted.clip(max=1)]


def needed_processes(rows: int, others: int | None = None) -> int:
    """The fewest processes by which one row of so many can be shown to differ from `others`, by default as many."""
    return next(n for n in count(2) if 2 * rows / comb(n + (others or n), n) < P_MAX)


def compare(
    base: Mapping[str, Any], here: Mapping[str, Any], *, limit: float, across_devices: bool = False
) -> list[Difference]:
    """The rows that both documents of `run_suite` have, in this one's order.

    Raises:
        UsageError: Their devices differ, unless `across_devices`; they share no row; or they have too few processes.
    """
    if not across_devices and (differing := _devices(base, here)):
        hint = "Add --across-devices to compare them all the same"
        raise UsageError(f"compare: the devices differ: {'; '.join(differing)}. {hint}")
    before = {row["key"]: row["process_s"] for row in base["rows"]}
    shared = [row for row in here["rows"] if row["key"] in before]
    if not shared:
        raise UsageError(f"compare: no row of suite {here['suite']} is in the base, which is of suite {base['suite']}")
    device = [row["key"] for row in shared if row["what"] in DEVICE_ROWS]
    check_processes(base, min(len(row["process_s"]) for row in shared))
    neighbours = max(document["noise"]["neighbours"] for document in (base, here))
    times = {row["key"]: row["process_s"] for row in shared}
    return judge(before, times, limit=limit, device=device, neighbours=neighbours)


def check_processes(base: Mapping[str, Any], processes: int) -> None:
    """Refuse a number of processes that could show no difference from the base.

    Raises:
        UsageError: They are too few.
    """
    rows = [row["process_s"] for row in base["rows"] if row["what"] not in DEVICE_ROWS]
    there = min(map(len, rows), default=1)
    if processes < (needed := needed_processes(len(rows), there)):
        said = f"compare: {processes} processes can show no difference from a base of {there}"
        raise UsageError(f"{said}. Measure with --processes {needed}, or make a base of more")


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
